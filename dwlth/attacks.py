"""Adversarial attacks: PGD-k, FGSM with random start, and none, as settings of one `Attack`."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dwlth.errors import DwlthError


@dataclass(frozen=True)
class Attack:
    """An untargeted L-inf attack that climbs the cross-entropy by signed gradient steps.

    PGD-k (Madry et al., 2018) is `steps=k`; FGSM with random start (Wong et al., 2020) is `steps=1` with a step
    of 1.25 eps; no attack is `steps=0`.
    """

    eps: float = 0.0
    """Radius of the L-inf ball, in pixels of [0, 1]."""
    step_size: float = 0.0
    """Length of one step, in pixels of [0, 1]."""
    steps: int = 0
    """Number of gradient steps; 0 returns the images as they are."""
    random_start: bool = True
    """Start from a uniform draw in the ball (as the paper does) instead of from the image itself."""
    bn: str = "eval"
    """Batch norm during the attack. `eval`: running statistics. `train`: batch statistics, and every forward pass
    updates the running ones (the reference code's training attacks). `frozen`: batch statistics, and the running
    ones are left as they were."""

    def __post_init__(self):
        if self.eps < 0 or self.step_size < 0 or self.steps < 0:
            raise DwlthError(f"attack: eps, step_size and steps must be 0 or more, not {self}")
        if self.bn not in ("eval", "train", "frozen"):
            raise DwlthError(f"attack: bn is {self.bn!r}, not one of eval, train, frozen")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Adversarial images for `x` (float [N, C, H, W] in [0, 1]) with labels `y` (int64 [N]); same shape, within
        `eps` of `x` and within [0, 1].

        `model` maps pixels in [0, 1] to logits, so it normalises inside. Its mode, gradients, `requires_grad` flags
        and (unless `bn="train"`) batch-norm statistics are left as they were. `generator` draws the start.
        """
        if self.steps == 0:
            return x
        low, high = (x - self.eps).clamp_(min=0), (x + self.eps).clamp_(max=1)
        adv = x
        if self.random_start:
            noise = torch.empty_like(x).uniform_(-self.eps, self.eps, generator=generator)
            adv = torch.clamp(x + noise, low, high)
        with torch.enable_grad(), _batch_norm(model, self.bn):
            for _ in range(self.steps):
                adv = adv.detach().requires_grad_()
                # autograd.grad with one input computes no weight gradients, and leaves every .grad alone
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv), y), adv)
                adv = torch.clamp(adv.detach().add_(gradient.sign_(), alpha=self.step_size), low, high)
        return adv


@contextmanager
def _batch_norm(model: nn.Module, mode: str):
    """Run the attack's passes with the model in `mode`, then put every module's own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()} if mode == "frozen" else {}
    model.train(mode != "eval")
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for name, buffer in buffers.items():
                model.get_buffer(name).copy_(buffer)
