"""Evaluation: standard accuracy (SA), and robust accuracy (RA) under an attack."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from dwlth.attacks import Attack
from dwlth.data import Augment, Split
from dwlth.fast import team
from dwlth.fast.folding import fold
from dwlth.models import Classifier
from dwlth.runs import stream


def available_precision(wanted: str, device: str | torch.device) -> str:
    """The precision that is used where `wanted` is asked for: float32 for bfloat16 where the device has no units for
    it, and for tf32 on a CPU."""
    if torch.device(device).type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        wanted = wanted.replace("tf32", "float32")
    return wanted if has_bf16 or wanted != "bfloat16" else "float32"


@contextmanager
def precision_of(name: str, device: torch.device):
    """Convolutions and products in this precision; on a GPU by its fastest algorithms, or its deterministic ones where
    torch.use_deterministic_algorithms says so. A GPU's flags are those of the whole process: there, two threads must
    not train in two precisions at once. On a CPU nothing is shared."""
    name = available_precision(name, device)
    with ExitStack() as stack:
        if device.type == "cuda":
            matmul, tf32 = torch.backends.cuda.matmul, name == "tf32"
            stack.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = tf32
            deterministic = torch.are_deterministic_algorithms_enabled()
            flags = dict(enabled=True, benchmark=not deterministic, deterministic=deterministic, allow_tf32=tf32)
            stack.enter_context(torch.backends.cudnn.flags(**flags))
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"))
        yield


def evaluate(
    model: Classifier,
    split: Split,
    attack: Attack,
    seed: int,
    augment: Augment | None = None,
    batch_size: int = 512,
    precision: str = "float32",
    exact: bool = False,
) -> tuple[float, float | None]:
    """SA and RA of `model` on `split`, each a fraction in [0, 1] of the images: SA of those classified right as they
    are, RA of those classified right as they are, at the start of `attack` and after each of its steps (None where it
    has none), so that an image once misclassified is attacked no further. The model is looked at in eval mode, and left
    as it is; the seed draws the attack's random starts.

    Args:
        exact: attack every image to the end, and let RA be the fraction classified right there, as in the reference
            code: that also counts images which the attack, or its last steps, turn from wrong to right.
        precision: see `Recipe.precision`.
    """
    device, ra = split.labels.device, None
    folded = fold(model, next(iter(split.batches(8, augment=augment)))[0])
    classes = lambda x: (logits := folded(x)).argmax(1).where(~logits.isnan().any(1), -1)  # NaN's argmax is 0
    with torch.no_grad(), precision_of(precision, device):
        right, robust = torch.zeros(len(split), dtype=torch.long, device=device), torch.zeros_like(split.labels[:1])
        for i, (x, y) in _share(split, batch_size, augment):
            right[i * batch_size :][: len(y)] = classes(x) == y
        team.current.sum_([right])
        sa = (right.sum() / len(right)).item()
        if attack.steps:
            attacked = split if exact else split.take(right.nonzero().flatten().tolist())  # again in full batches
            generator, drawn = torch.Generator(device).manual_seed(stream(seed, "evaluate")), 0
            together = exact or attack.restarts == 1  # else the draws of a batch depend on what became of those before
            for i, (x, y) in _share(attacked, batch_size, augment, together):
                for _ in range(drawn, i):  # as the processes before this one do
                    attack.starts(x.new_empty(batch_size, *x.shape[1:]), generator)
                drawn = i + 1
                if exact:
                    robust += (classes(attack(folded, x, y, generator)) == y).sum()
                else:
                    robust += attack.survivors(folded, x, y, generator)
            team.current.sum_([robust])
            ra = robust.item() / len(split)
    return sa, ra


def _share(split: Split, size: int, augment: Augment | None, together: bool = True) -> Iterator[tuple[int, tuple]]:
    """This process's batches of a split, with their numbers; or else the first process has all."""
    own = team.current.share(math.ceil(len(split) / size)) if together else range(0)
    if team.current.size > 1 and (together or team.current.rank):
        split = split.take(list(range(own.start * size, min(own.stop * size, len(split)))))
    return enumerate(split.batches(size, augment=augment), own.start)
