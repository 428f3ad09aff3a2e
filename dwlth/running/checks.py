"""Is the robustness of a network real? Checks that a weak attack or masked gradients would fail: after Carlini et al.,
2019, "On evaluating adversarial robustness", and for the active test Zimmermann et al., 2022."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from dwlth.attacks import Attack, batch_norm
from dwlth.data import Augment, Split
from dwlth.errors import DwlthError
from dwlth.evaluation import evaluate
from dwlth.models import Classifier
from dwlth.outside.autoattack import autoattack

POINTS = 1.0
"""Points that a weaker attack may seem stronger by, for chance (our choice)."""
CONVERGED = 3.0
"""Points of RA that five times the steps, or five restarts, may cost (our choice; five restarts cost the fifty
networks of `results/digits/audit.csv` 0 to 3.7)."""
BEYOND_PGD = 8.0
"""Points of RA that AutoAttack may cost beyond PGD (our choice: for RobustBench's honest networks it is 2 to 5)."""
FOUND = 0.95
"""Share of planted weaknesses that the attack must find (Zimmermann et al., 2022)."""


def _jpeg(images: Tensor, quality: float) -> Tensor:
    """By Pillow: torchvision's own is deprecated since 0.29."""
    found = []
    for image in (255 * images).round().byte().cpu():
        file = io.BytesIO()
        TF.to_pil_image(image).save(file, "JPEG", quality=int(quality))
        found.append(TF.pil_to_tensor(Image.open(file)))
    return torch.stack(found).to(images.device) / 255


SEVERITIES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "Gaussian noise": (lambda x, s: v2.GaussianNoise(sigma=s)(x), (0.04, 0.06, 0.08, 0.09, 0.1)),
    "Gaussian blur": (lambda x, s: TF.gaussian_blur(x, [5, 5], [s, s]), (0.4, 0.6, 0.7, 0.8, 1.0)),
    "less contrast": (TF.adjust_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brighter": (lambda x, s: (x + s).clamp(0, 1), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "JPEG": (_jpeg, (80, 65, 58, 50, 40)),
}
"""Corruptions by torchvision, at five severities; the numbers are like those of CIFAR-10-C where it has the like."""


def audit(
    model: Classifier,
    split: Split,
    attack: Attack,
    *,
    seed: int = 0,
    others: Mapping[str, Classifier] | None = None,
    augment: Augment | None = None,
    precision: str = "float32",
    exact: bool = False,
    tell: Callable[[str], object] = lambda check: None,
) -> pd.DataFrame:
    """One row for each check of `model` on the images of `split`: its name, what was found, what an honest network
    shows, and the verdict: `passes`, `fails`, or empty for what is only measured.

    Args:
        attack: the one that RA is measured with.
        others: networks by name, whose adversarial images are tried on this one.
        augment, precision, exact: see `dwlth.evaluation.evaluate`.
        tell: hears of each check that is done.

    Raises:
        DwlthError: for an attack of no steps or another norm than linf; see also `dwlth.outside.autoattack.autoattack`.
    """
    if attack.norm != "linf":
        raise DwlthError(f"audit: the attack's norm is {attack.norm!r}: the checks here are those of linf")
    if not attack.steps or not attack.eps:
        raise DwlthError(f"audit: the attack has {attack.steps} steps and eps {attack.eps:g}: there is no RA to check")
    rows: list[dict[str, Any]] = []
    measuring = {"augment": augment, "precision": precision, "exact": exact}

    def add(check: str, found: str, honest: str = "", fine: bool | None = None) -> None:
        rows.append({"check": check, "found": found, "honest": honest})
        rows[-1]["verdict"] = "" if fine is None else "passes" if fine else "fails"
        tell(check)

    def ra(other: Attack) -> float:
        return 100 * evaluate(model, split, other, seed, **measuring)[1]

    def accuracy(images: Callable[[Tensor, Tensor], Tensor]) -> float:
        right = 0
        for x, y in split.batches(250, augment=augment):
            x = images(x, y)
            with torch.no_grad():
                right += int((model(x).argmax(1) == y).sum())
        return 100 * right / len(split)

    model.eval()
    sa, own = (100 * value for value in evaluate(model, split, attack, seed, **measuring))
    add("SA and RA", f"{sa:.1f} and {own:.1f} %")
    none = ra(replace(attack, eps=0.0))
    add("RA at eps 0", f"{none:.1f} %", "the SA", abs(none - sa) < 1e-3)
    scale = (0.25, 0.5, 1.0, 2.0, 4.0)
    falling = [ra(replace(attack, eps=k * attack.eps, step_size=k * attack.step_size)) for k in scale]
    fine = all(later <= earlier + POINTS for earlier, later in zip([sa, *falling], falling))
    add(f"RA at {', '.join(f'{k:g}' for k in scale)} eps", ", ".join(f"{r:.1f}" for r in falling) + " %", "falls", fine)
    gone = ra(replace(attack, eps=0.5, step_size=0.05, steps=max(100, attack.steps)))
    add("RA at eps 0.5, where any image can turn grey", f"{gone:.1f} %", f"0 to {POINTS:g} %", gone <= POINTS)
    for name, change in {"5 times the steps": {"steps": 5 * attack.steps}, "5 restarts": {"restarts": 5}}.items():
        if change.get("restarts", 1) > 1 and not attack.random_start:
            continue
        stronger = ra(replace(attack, **change))
        add(f"RA under {name}", f"{stronger:.1f} %", f"at most {CONVERGED:g} points less", own - stronger <= CONVERGED)
    numbers = {"eps": attack.eps, "norm": attack.norm, "seed": seed % 2**31}
    square = accuracy(lambda x, y: autoattack(model, x, y, **numbers, attacks=["square"]))
    near = f"at most {POINTS:g} point less"
    add("RA under Square, a black-box attack", f"{square:.1f} %", near, square >= own - POINTS)
    generator = torch.Generator(split.labels.device).manual_seed(seed % 2**31)
    for name, other in (others or {}).items():
        moved = accuracy(lambda x, y, other=other: attack(other, x, y, generator))
        add(f"RA under images made for {name}", f"{moved:.1f} %", near, moved >= own - POINTS)
    auto = accuracy(lambda x, y: autoattack(model, x, y, **numbers))
    add("RA under AutoAttack", f"{auto:.1f} %", f"at most {BEYOND_PGD:g} points less", own - auto <= BEYOND_PGD)
    x, y = next(iter(split.batches(min(128, len(split)), augment=augment)))
    found, planted = active_test(model, x, attack, seed)
    fine = found >= FOUND * planted if planted else None
    add("planted weaknesses that the attack finds", f"{found} of {planted}", f"at least {FOUND:.0%}", fine)
    for name, (corrupt, severities) in SEVERITIES.items():
        with torch.random.fork_rng([]):
            torch.manual_seed(seed % 2**31)
            found = [accuracy(lambda x, y, s=s, corrupt=corrupt: corrupt(x, s)) for s in severities]
        add(f"SA under {name}, five severities", ", ".join(f"{r:.1f}" for r in found) + " %")
    add("calibration error (ECE, 15 bins)", f"{100 * calibration_error(model, split, augment):.1f} points")
    return pd.DataFrame(rows)


def active_test(model: nn.Module, x: Tensor, attack: Attack, seed: int = 0, inner: int = 200) -> tuple[int, int]:
    """Zimmermann et al., 2022: give the network a new last layer, for each image, that has a known weakness within
    `eps`, and see whether the attack finds one. An attack that does not is too weak to say that there is none.

    Of an image, `inner` points lie at most half of eps away in each pixel, half of them in corners of that smaller
    ball, and one lies in a corner of the whole ball. The layer tells the one from the others. A weakness that as many
    random corners as the attack has steps show too is easy, and is not counted.

    Args:
        x: images, float [N, C, H, W] in [0, 1].

    Returns:
        How many weaknesses were found, and how many were planted.
    """
    from sklearn.linear_model import LogisticRegression

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    kept: list[Tensor] = []
    generator = torch.Generator(x.device).manual_seed(seed % 2**31)
    noise = lambda n, width: (2 * torch.rand(n, *x.shape[1:], generator=generator, device=x.device) - 1) * width

    def features(images: Tensor) -> Tensor:
        kept.clear()
        model(images)
        return kept[0].flatten(1)

    found = planted = 0
    handle = last.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    try:
        with batch_norm(model, "eval"):
            for image in x.split(1):
                corner, random = ((image + attack.eps * noise(n, 1.0).sign()).clamp(0, 1) for n in (1, attack.steps))
                half = attack.eps / 2
                near = torch.cat([noise(inner // 2, half), half * noise(inner - inner // 2, 1.0).sign()])
                near = (image + near).clamp(0, 1)
                with torch.no_grad():
                    points = features(torch.cat([image, near, corner, random])).double()
                scale = points[: inner + 2].std(0).clamp_min(1e-9)
                known = ((points / scale).cpu().numpy()[: inner + 2], [0] * (inner + 1) + [1])
                fit = LogisticRegression(C=1e4, class_weight="balanced", max_iter=1000).fit(*known)
                weight = torch.tensor(fit.coef_[0]).to(points) / scale
                bias = float(fit.intercept_[0])
                side = points @ weight + bias
                if (side[: inner + 1] >= 0).any() or side[inner + 1] <= 0 or (side[inner + 2 :] > 0).any():
                    continue  # not to be told apart, or too easy
                planted += 1
                weak = _Readout(features, weight.to(x.dtype), bias)
                label = torch.zeros(1, dtype=torch.long, device=x.device)
                adversarial = attack(weak, image, label, generator)
                with torch.no_grad():
                    found += int(weak(adversarial).argmax(1).item() == 1)
    finally:
        handle.remove()
    return found, planted


class _Readout(nn.Module):
    """Two classes, by which side of a plane an image's features lie."""

    def __init__(self, features: Callable[[Tensor], Tensor], weight: Tensor, bias: float):
        super().__init__()
        self.features, self.weight, self.bias = features, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        side = self.features(x) @ self.weight + self.bias
        return torch.stack([-side, side], 1)


@torch.no_grad()
def calibration_error(model: nn.Module, split: Split, augment: Augment | None = None, bins: int = 15) -> float:
    """The expected calibration error (Guo et al., 2017), in [0, 1]: how far confidence and accuracy are apart, as a
    mean over bins of equal width of the confidence, weighted by their images."""
    pairs = [(model(x).softmax(1).max(1), y) for x, y in split.batches(512, augment=augment)]
    confidence = torch.cat([best.values for best, _ in pairs]).double()
    right = torch.cat([best.indices == y for best, y in pairs]).double()
    which = (confidence * bins).long().clamp_max(bins - 1)
    apart = torch.zeros(bins, dtype=torch.double, device=which.device).index_add_(0, which, confidence - right)
    return float(apart.abs().sum() / len(split))
