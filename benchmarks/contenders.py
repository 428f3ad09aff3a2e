"""What is measured: ours by the functions that users call, and the peers by their own documented calls.

A contender is a generator function of the sizes, the device and a scratch folder. It sets itself up and prepares; at
its first `yield` the clock starts, and at the next it stops. What that second `yield` gives is called afterwards, and
returns what else is known of this round: `units` of work (1 where it says nothing), `ra`, `masks`, `correct`. Then the
contender prepares again. One that cannot run here raises `Absent`.
"""

import contextlib
import copy
import hashlib
import importlib
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision import models as torchvision_models

from dwlth import data, masks, models, presets, tickets, training
from dwlth.attacks import Attack
from dwlth.data import Augment, Split
from dwlth.evaluation import available_precision, evaluate
from dwlth.recipe import Recipe

EPS, STEP = 8 / 255, 2 / 255  # the paper's, in pixels of [0, 1]
CONTRAST = 0.2
"""Of the digits that are evaluated, so that eps 8/255 costs accuracy: black and white lie 0.2 apart, not 1."""


@dataclass(frozen=True)
class Sizes:
    """How much work a round is."""

    network: str = "resnet18-3x3"
    side: int = 32
    batch: int = 128
    batches: int = 1
    """Training steps of a round."""
    steps: int = 10
    """Of the training attack."""
    test_images: int = 128
    test_steps: int = 20
    """Of the evaluation's attack."""
    test_epochs: int = 6
    """Of the training of the network that is evaluated."""
    pruned: str = "resnet50"
    crops: int = 4096
    resized: int = 1024
    ceiling: int = 2048
    """Side of the matrices whose product gives the ceiling of the arithmetic."""
    threads: int = 0
    """0: as many as torch takes."""


CPU = Sizes()
CUDA = Sizes(batches=24, test_images=800, crops=16384, resized=4096, ceiling=8192)
SMOKE = Sizes("small_resnet", 8, 8, 2, 2, 40, 10, 2, "resnet18", 64, 16, 128, threads=1)
BIG = Sizes("resnet50", 224, 64, 12)


class Absent(Exception):
    """This contender cannot run here, and why."""


Round = Callable[[], dict] | None
Contender = Callable[[Sizes, str, Path], Iterator[Round]]


def installed(name: str):
    """The peer's module."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # peers are old: importing one can raise anything
        raise Absent("not installed" if isinstance(error, ModuleNotFoundError) else f"no import: {error}") from None


# --- networks and images


def network(sizes: Sizes, device: str, channels_last: bool = False, classes: int = 10) -> models.Classifier:
    """A network with random weights; in torch's own memory format, as peers use it, unless told otherwise."""
    channels = 1 if sizes.network == "small_resnet" else 3
    model = models.build(sizes.network, classes, (0.5,) * channels, (0.25,) * channels, seed=0).to(device)
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def noise(sizes: Sizes, device: str) -> Split:
    """Random images with random labels: a training step takes as long whatever they show."""
    n, channels = sizes.batch * sizes.batches, 1 if sizes.network == "small_resnet" else 3
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, channels, sizes.side, sizes.side), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (n,), generator=generator)).to(device)


def plainly(split: Split, size: int) -> list[tuple[Tensor, Tensor]]:
    """Batches for peers, without ours having a hand in it."""
    return list(zip((split.images.float() / 255).split(size), split.labels.split(size)))


def digits(sizes: Sizes) -> tuple[Split, Split]:
    """Training and test images of the ten handwritten digits in the network's size, in low contrast."""
    parts = {"train": [], "test": []}
    for first, task in enumerate((data.load("digits0-4"), data.load("digits5-9"))):
        for name, splits in {"train": [task.train], "test": [task.val, task.test]}.items():
            parts[name] += [Split(split.images, split.labels + 5 * first) for split in splits]

    def whole(splits: list[Split]) -> Split:
        images = torch.cat([split.images for split in splits]).float()
        if sizes.network != "small_resnet":
            images = F.interpolate(images, sizes.side, mode="bilinear").expand(-1, 3, -1, -1)
        images = (127.5 + CONTRAST * (images - 127.5)).round().to(torch.uint8)
        return Split(images.contiguous(), torch.cat([split.labels for split in splits]))

    train, test = whole(parts["train"]), whole(parts["test"])
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    return train, test.take(order[: sizes.test_images].tolist())


def train_for_evaluation(sizes: Sizes, device: str, folder: Path) -> None:
    """Leave a network in the scratch folder that has learnt some robustness: fast adversarial training on `digits`."""
    model, (train, _) = network(sizes, device, channels_last=True), digits(sizes)
    recipe = Recipe(
        epochs=sizes.test_epochs,
        batch_size=64,
        lr=0.05,
        schedule="cosine",
        attack=Attack(EPS, 1.25 * EPS, 1, bn="train"),
        validate_every=sizes.test_epochs,
        precision="bfloat16",
    )
    train = train.to(device)
    training.fit(model, recipe, train, train.take(list(range(64))), seed=0)
    torch.save(model.net.state_dict(), folder / "trained.pt")


# --- one step of adversarial training


def bare(bf16: bool, attack_mode: str = "train", compiled: bool = False) -> Contender:
    """The passes of a step and nothing else: `steps` for the gradient of the images, one for that of the weights. In
    float32 as anyone would do them, in bfloat16 under our conditions (`Split.batches` keeps freed memory)."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        if bf16 and available_precision("bfloat16", device) != "bfloat16":
            raise Absent("no bfloat16 units")
        model = network(sizes, device, channels_last=bf16)
        passes = torch.compile(model) if compiled else model
        split = noise(sizes, device)
        batches = list(split.batches(sizes.batch)) if bf16 else plainly(split, sizes.batch)
        cast = torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else contextlib.nullcontext()
        with training_flags(device):
            while True:
                yield None
                for x, y in batches:
                    x = x.to(memory_format=torch.channels_last) if bf16 else x
                    with cast:
                        model.train(attack_mode == "train")
                        for _ in range(sizes.steps):
                            leaf = x.detach().requires_grad_()
                            torch.autograd.grad(F.cross_entropy(passes(leaf), y, reduction="sum"), leaf)
                        model.train()
                        loss = F.cross_entropy(passes(x), y)
                    model.zero_grad()
                    loss.backward()
                yield lambda: {"units": sizes.batches}

    return contender


def training_flags(device: str):
    """cuDNN's fastest algorithms, without TF32 where float32 is said, for bare passes and peers alike."""
    return (
        torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
        if device != "cpu"
        else contextlib.nullcontext()
    )


def linf_pgd(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """PGD as advertorch documents its LinfPGDAttack (which no longer imports): uniform start, clipped; steps along the
    sign of the gradient of the summed loss; weights take no gradient, as the paper's code has it. Written for this."""
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    delta = torch.empty_like(x).uniform_(-EPS, EPS)
    delta = ((x + delta).clamp(0, 1) - x).requires_grad_()
    for _ in range(steps):
        F.cross_entropy(model(x + delta), y, reduction="sum").backward()
        with torch.no_grad():
            delta.copy_((delta + STEP * delta.grad.sign()).clamp(-EPS, EPS))
            delta.copy_((x + delta).clamp(0, 1) - x)
            delta.grad.zero_()
    for weight in weights:
        weight.requires_grad_()
    return (x + delta).detach()


def their_loop(attack_of: Callable) -> Contender:
    """The reference code's loop: float32, masks by torch.nn.utils.prune, loss and accuracy read at every step; with an
    attack `attack_of(model, steps)`, in train mode."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        model = network(sizes, device)
        attack = attack_of(model, sizes.steps)
        convolutions = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d)]
        torch_prune.global_unstructured(convolutions, torch_prune.L1Unstructured, amount=0.2)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        batches = plainly(noise(sizes, device), sizes.batch)
        model.train()
        with training_flags(device):
            while True:
                yield None
                for x, y in batches:
                    logits = model(attack(x, y))
                    loss = F.cross_entropy(logits, y)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    loss.item(), (logits.argmax(1) == y).sum().item()
                yield lambda: {"units": sizes.batches}

    return contender


def reference_attack(model: nn.Module, steps: int) -> Callable:
    return lambda x, y: linf_pgd(model, x, y, steps)


def torchattacks_attack(model: nn.Module, steps: int) -> Callable:
    attack = installed("torchattacks").PGD(model, EPS, STEP, steps, random_start=True)
    if model.training:
        attack.set_model_training_mode(model_training=True, batchnorm_training=True, dropout_training=True)
    return attack


def robustness_attack(model: nn.Module, steps: int) -> Callable:
    """MadryLab's attacker, told that the model normalises by itself; on a CPU, its one call of cuda() does nothing."""
    attacker = installed("robustness.attacker").Attacker(model, SimpleNamespace(mean=model.mean, std=model.std))
    settings = {"constraint": "inf", "eps": EPS, "step_size": STEP, "iterations": steps, "random_start": True}

    def attack(x: Tensor, y: Tensor) -> Tensor:
        stay = contextlib.nullcontext() if x.is_cuda else mock.patch.object(Tensor, "cuda", lambda self: self)
        with stay:
            return attacker(x, y, should_normalize=False, **settings)

    return attack


def our_step(precision: str, bn: str) -> Contender:
    """`dwlth.training.fit`, as a transfer calls it."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        if available_precision(precision, device) != precision:
            raise Absent(f"no {precision} units")
        model, split = network(sizes, device, channels_last=True), noise(sizes, device)
        mask = masks.prune(masks.dense(model.net), masks.magnitude(model.net), 0.2)
        attack = Attack(EPS, STEP, sizes.steps, bn=bn)
        crop = Augment("pad", flip=True)
        recipe = Recipe(2, sizes.batch, 0.01, attack=attack, augment=crop, validate_every=2, precision=precision)
        options = {"seed": 0, "mask": mask, "on_epoch": lambda row: True}
        while True:
            yield None
            with contextlib.suppress(training.OutOfTime):  # one epoch, without validation
                training.fit(model, recipe, split, split, **options)
            yield lambda: {"units": sizes.batches}

    return contender


STEPS = {
    "reference loop": their_loop(reference_attack),
    "bare passes, float32": bare(False),
    "torchattacks": their_loop(torchattacks_attack),
    "MadryLab robustness": their_loop(robustness_attack),
    "ours, float32": our_step("float32", "train"),
    "ours, bfloat16": our_step("bfloat16", "train"),
    "bare passes, bfloat16 channels_last": bare(True),
    "ours, bfloat16, eval-mode attack": our_step("bfloat16", "eval"),
    "bare passes, the same, eval-mode attack": bare(True, "eval"),
}
CUDA_STEPS = STEPS | {
    "ours, tf32": our_step("tf32", "train"),
    "bare compiled passes, bfloat16": bare(True, compiled=True),
}


# --- evaluation under PGD


def their_evaluation(attack_of: Callable) -> Contender:
    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        model = network(sizes, device)
        model.net.load_state_dict(torch.load(folder / "trained.pt", map_location=device))
        model.eval()
        attack = attack_of(model, sizes.test_steps)
        batches = plainly(digits(sizes)[1].to(device), 128)
        with training_flags(device):
            while True:
                torch.manual_seed(0)
                yield None
                right = 0
                for x, y in batches:
                    adv = attack(x, y)
                    with torch.no_grad():
                        right += (model(adv).argmax(1) == y).sum().item()
                yield lambda right=right: {"ra": right / sizes.test_images, "units": sizes.test_images}

    return contender


def foolbox_attack(model: nn.Module, steps: int) -> Callable:
    foolbox = installed("foolbox")
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=True)
    return lambda x, y: attack(wrapped, x, y, epsilons=EPS)[1]


def cleverhans_attack(model: nn.Module, steps: int) -> Callable:
    module = installed("cleverhans.torch.attacks.projected_gradient_descent")
    settings = {"eps": EPS, "eps_iter": STEP, "nb_iter": steps, "norm": np.inf, "clip_min": 0, "clip_max": 1}
    return lambda x, y: module.projected_gradient_descent(model, x, y=y, **settings)


def art_attack(model: nn.Module, steps: int) -> Callable:
    estimators, evasion = installed("art.estimators.classification"), installed("art.attacks.evasion")
    device = next(model.parameters()).device
    kind = "cpu" if device.type == "cpu" else "gpu"
    classifier = estimators.PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0, 1), device_type=kind
    )
    attack = evasion.ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=STEP, max_iter=steps, num_random_init=1, batch_size=128, verbose=False
    )
    return lambda x, y: torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(device)


def our_evaluation(precision: str, exact: bool = False) -> Contender:
    """`dwlth.evaluation.evaluate`; SA is measured too, which is one more pass. `exact`: RA of the last step, as peers
    have it."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        if available_precision(precision, device) != precision:
            raise Absent(f"no {precision} units")
        model = network(sizes, device, channels_last=True)
        model.net.load_state_dict(torch.load(folder / "trained.pt", map_location=device))
        split, attack = digits(sizes)[1].to(device), Attack(EPS, STEP, sizes.test_steps)
        while True:
            yield None
            sa, ra = evaluate(model, split, attack, seed=0, precision=precision, exact=exact)
            yield lambda sa=sa, ra=ra: {"sa": sa, "ra": ra, "units": len(split)}

    return contender


def convolutions(model: nn.Module, x: Tensor) -> dict[nn.Conv2d, tuple[torch.Size, torch.Size]]:
    """The convolutions of a network, each with the shapes of what it reads and writes."""
    found: dict[nn.Conv2d, tuple] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, args, out: found.update({layer: (args[0].shape, out.shape)}))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def evaluation_convolutions(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
    """The convolutions of that evaluation, to images and back, with nothing between them: what no way around torch's
    own convolutions in float32 can leave out."""
    x, _ = next(digits(sizes)[1].to(device).batches(128))  # keeps freed memory, as ours do
    layers = [
        (layer, torch.randn(shape, device=device).to(memory_format=torch.channels_last))
        for layer, (shape, _) in convolutions(network(sizes, device, channels_last=True), x).items()
    ]
    with training_flags(device):
        while True:
            yield None
            for step in range(sizes.test_steps + 1):
                for layer, given in layers:
                    out = layer(given.requires_grad_(step < sizes.test_steps))
                    if step < sizes.test_steps:
                        torch.autograd.grad(out, given, torch.ones_like(out))
            yield lambda: {"units": len(x)}


LAST_STEP = {
    "plain loop": their_evaluation(reference_attack),
    "torchattacks": their_evaluation(torchattacks_attack),
    "ours, float32, last step": our_evaluation("float32", exact=True),
    "ours: its convolutions alone": evaluation_convolutions,
}
EVALUATIONS = {
    "plain loop": their_evaluation(reference_attack),
    "torchattacks": their_evaluation(torchattacks_attack),
    "foolbox": their_evaluation(foolbox_attack),
    "cleverhans": their_evaluation(cleverhans_attack),
    "ART": their_evaluation(art_attack),
    "ours, float32": our_evaluation("float32"),
    "ours, bfloat16": our_evaluation("bfloat16"),
}


# --- masks


def pruned_network(sizes: Sizes, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(torchvision_models, sizes.pruned)(weights=None)


def digest(tensors: Iterator[Tensor]) -> str:
    return hashlib.sha256(b"".join(np.packbits(tensor.numpy() != 0).tobytes() for tensor in tensors)).hexdigest()[:16]


def our_pruning(seed: int) -> Contender:
    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        net = pruned_network(sizes, seed)
        while True:
            mask = masks.dense(net)
            yield None
            mask = masks.prune(mask, masks.magnitude(net), 0.2)
            yield lambda mask=mask: {"masks": digest(mask.values())}

    return contender


def their_pruning(seed: int) -> Contender:
    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        net = pruned_network(sizes, seed)
        while True:
            fresh = copy.deepcopy(net)
            convolutions = [(m, "weight") for m in fresh.modules() if isinstance(m, nn.Conv2d)]
            yield None
            torch_prune.global_unstructured(convolutions, torch_prune.L1Unstructured, amount=0.2)
            yield lambda of=convolutions: {"masks": digest(module.weight_mask for module, _ in of)}

    return contender


def prunings(seed: int) -> dict[str, Contender]:
    return {"torch.nn.utils.prune": their_pruning(seed), "ours": our_pruning(seed)}


def our_tickets(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
    net, path = pruned_network(sizes, 0), folder / "ours.safetensors"
    mask = masks.prune(masks.dense(net), masks.magnitude(net), 0.2)
    while True:
        yield None
        tickets.save(path, mask)
        loaded, _ = tickets.load(path)
        yield lambda loaded=loaded: {"masks": digest(loaded.values()), "bytes": path.stat().st_size}


def their_tickets(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
    """The float masks of torch.nn.utils.prune through torch.save, without the weights that the reference code adds."""
    net, path = pruned_network(sizes, 0), folder / "theirs.pt"
    mask = masks.prune(masks.dense(net), masks.magnitude(net), 0.2)
    floats = {name: tensor.float() for name, tensor in mask.items()}
    while True:
        yield None
        torch.save(floats, path)
        loaded = torch.load(path)
        yield lambda loaded=loaded: {"masks": digest(loaded.values()), "bytes": path.stat().st_size}


def our_application(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
    net = pruned_network(sizes, 0).to(device)
    again = masks.prune(masks.dense(net), masks.magnitude(net), 0.2).apply_(net)
    while True:
        yield None
        for _ in range(10):
            again()
        yield lambda: {"units": 10, "masks": digest(w.detach().cpu() for w in masks.prunable(net).values())}


def their_application(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
    """What torch.nn.utils.prune does before every forward pass: weight = weight_orig * weight_mask, layer by layer."""
    net = pruned_network(sizes, 0).to(device)
    convolutions = [(m, "weight") for m in net.modules() if isinstance(m, nn.Conv2d)]
    torch_prune.global_unstructured(convolutions, torch_prune.L1Unstructured, amount=0.2)
    hooks = [(hook, module) for module, _ in convolutions for hook in module._forward_pre_hooks.values()]
    while True:
        yield None
        for _ in range(10):
            for hook, module in hooks:
                hook(module, None)
        yield lambda: {"units": 10, "masks": digest(module.weight.detach().cpu() for module, _ in convolutions)}


# --- images


def png_folder(sizes: Sizes, folder: Path) -> None:
    """A folder of class folders with small PNG files, of the test's own noise."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(256, size=(max(sizes.crops, sizes.resized), 32, 32, 3), dtype=np.uint8)
    for part in ("train", "val", "test"):
        for label in range(2):
            (folder / "png" / part / str(label)).mkdir(parents=True)
            Image.fromarray(pixels[label]).save(folder / "png" / part / str(label) / "0.png")
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "png" / "train" / str(i % 2) / f"{i}.png")


def our_images(augment: Augment, count: str, epochs: int) -> Contender:
    """`Split.batches`: decoded once, then cut and mirrored on the device."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        n = getattr(sizes, count)
        split = data.load("folder:png", folder).train.take(list(range(n))).to(device)
        generator = torch.Generator(device).manual_seed(0)
        while True:
            yield None
            seen = 0
            for _ in range(epochs):
                for images, _ in split.batches(128, generator, augment):
                    seen += len(images)
            yield lambda seen=seen: {"units": seen}

    return contender


def their_images(transform: Callable, count: str) -> Contender:
    """torchvision's ImageFolder in a DataLoader with two workers, which stay from one epoch to the next."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        n = getattr(sizes, count)
        images = torch.utils.data.Subset(datasets.ImageFolder(folder / "png" / "train", transform), range(n))
        options = {"num_workers": 2, "persistent_workers": True, "pin_memory": device != "cpu"}
        loader = DataLoader(images, 128, shuffle=True, **options)
        while True:
            yield None
            seen = 0
            for batch, _ in loader:
                seen += len(batch.to(device, non_blocking=True))
            yield lambda seen=seen: {"units": seen}

    return contender


CROP = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
RESIZED = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]


# --- whole processes


def importing(module: str) -> Contender:
    """A fresh interpreter; what the import costs after torch is in `beyond`, in seconds."""
    code = f"import time, torch; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        while True:
            yield None
            ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            yield lambda ran=ran: {"beyond": float(ran.stdout)}

    return contender


def command_line(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dwlth", *words], check=True, capture_output=True)


def quickstart(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
    for i in itertools.count():
        yield None
        command_line("run", "digits", "--device", device, "--results", str(folder / f"quickstart{i}"))
        yield None


def transfers(*options: str) -> Contender:
    """Twelve transfers of `digits` (2 seeds, 2 regimes, 3 tickets) whose sources and tickets are there already."""
    settings = ["--source", "adversarial", "--seeds", "2", "--set", "rounds=0,1,2", "--set", "fractions=1.0"]

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        ready = folder / "-".join(["transfers", *options])
        command = ["run", "digits", *settings, "--device", device, "--results"]
        command_line(*command, str(ready), "--stage", "pretrain", "--stage", "imp")
        for i in itertools.count():
            fresh = ready.with_name(f"{ready.name}-{i}")
            shutil.copytree(ready, fresh)
            yield None
            command_line(*command, str(fresh), "--stage", "transfer", *options)
            yield lambda: {"units": 12}

    return contender


# --- what the hardware can do


def product(dtype: torch.dtype) -> Contender:
    """A product of two square matrices; `units` are GFLOP."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        a, b = (torch.randn(sizes.ceiling, sizes.ceiling, device=device).to(dtype) for _ in range(2))
        while True:
            yield None
            for _ in range(5):
                a @ b
            yield lambda: {"units": 5 * 2 * sizes.ceiling**3 / 1e9}

    return contender


def convolution(channels: int, side: int, dtype: torch.dtype) -> Contender:
    """A 3x3 convolution of ResNet-18, forward, on 128 channels_last images; `units` are GFLOP."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        layer, x = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            torch.randn(sizes.batch, channels, side, side),
        )
        layer, x = (what.to(device, dtype, memory_format=torch.channels_last) for what in (layer, x))
        with torch.no_grad(), training_flags(device):
            while True:
                yield None
                for _ in range(5):
                    layer(x)
                yield lambda: {"units": 5 * 2 * 9 * channels**2 * side**2 * sizes.batch / 1e9}

    return contender


def small_step(convolutions_alone: bool) -> Contender:
    """The adversarial training of `cifar-small`'s transfers, bfloat16; `units` are the GFLOP of its convolutions (a
    backward pass to the images costs as much as a forward pass, one to the weights as much again). Or the same
    convolutions, forward and back as often, with nothing between them: the ceiling that the step could reach."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        if available_precision("bfloat16", device) != "bfloat16":
            raise Absent("no bfloat16 units")
        preset = presets.get("cifar-small")
        recipe = preset.transfer["adversarial"]
        steps, batches = recipe.attack.steps, 10 if sizes.side == 32 else 1
        images = noise(replace(sizes, network="", batch=recipe.batch_size, side=32, batches=batches), device)
        model = models.build(preset.network, 10, [0.5] * 3, [0.25] * 3, seed=0).to(device)
        layers = convolutions(model, images.images[: recipe.batch_size].float() / 255)
        forward = sum(2 * out.numel() * layer.weight[0].numel() for layer, (_, out) in layers.items()) / 1e9
        units = batches * forward * (2 * (steps + 1) + 1)
        short = replace(recipe, epochs=2, validate_every=2, validation=Attack())
        half = [
            (layer.to(torch.bfloat16), torch.randn(shape).to(device, torch.bfloat16, memory_format=torch.channels_last))
            for layer, (shape, _) in (copy.deepcopy(layers) if convolutions_alone else {}).items()
        ]
        while True:
            yield None
            if not convolutions_alone:
                with contextlib.suppress(training.OutOfTime):  # one epoch, without validation
                    training.fit(model, short, images, images, seed=0, on_epoch=lambda row: True)
            for i in range(batches * (steps + 1) if convolutions_alone else 0):
                last = (i + 1) % (steps + 1) == 0
                for layer, x in half:
                    out = layer(x.requires_grad_())
                    torch.autograd.grad(out, [x, layer.weight] if last else [x], torch.ones_like(out))
            yield lambda: {"units": units}

    return contender


def copying(fresh: bool) -> Contender:
    """Copying 128 MiB; `units` are GB read and written. Into fresh memory, the system also has to provide it."""

    def contender(sizes: Sizes, device: str, folder: Path) -> Iterator[Round]:
        source = torch.ones(2**25 if sizes.ceiling > 128 else 2**16, device=device)
        target = torch.empty_like(source)
        while True:
            yield None
            for _ in range(5):
                source.clone() if fresh else target.copy_(source)
            yield lambda: {"units": 5 * 2 * source.nbytes / 1e9}

    return contender


def step_gflop(sizes: Sizes) -> float:
    """GFLOP (a multiplication and an addition are two) of the products and convolutions of one training step."""
    from torch.utils.flop_counter import FlopCounterMode

    model = network(sizes, "cpu")
    x, y = next(noise(sizes, "cpu").batches(2))
    of_images, of_weights = (FlopCounterMode(display=False) for _ in range(2))
    with of_weights:
        F.cross_entropy(model(x), y).backward()
    model.requires_grad_(False)
    with of_images:
        F.cross_entropy(model(x.requires_grad_()), y).backward()
    flop = sizes.steps * of_images.get_total_flops() + of_weights.get_total_flops()
    return flop / len(x) * sizes.batch / 1e9
