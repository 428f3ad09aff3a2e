"""Adversarial attacks: PGD-k, FGSM with random start, and none, as settings of one `Attack`."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dwlth.errors import DwlthError

Draws = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Attack:
    """An L-inf or L2 attack that climbs the cross-entropy by projected gradient steps.

    PGD-k (Madry et al., 2018) is `steps=k`; FGSM with random start (Wong et al., 2020) is `steps=1` with a step
    of 1.25 eps; no attack is `steps=0`.
    """

    eps: float = 0.0
    """Radius of the ball of `norm` around an image, in pixels of [0, 1]."""
    step_size: float = 0.0
    """Length of one step in `norm`, in pixels of [0, 1]: L-inf steps go along the sign of the gradient, L2 steps along
    the gradient of each image."""
    steps: int = 0
    """Number of gradient steps; 0 returns the images as they are."""
    random_start: bool = True
    """Start from a draw in the ball, clipped to [0, 1], instead of from the image itself. L-inf: uniform in the ball,
    as the paper does. L2: in a uniform direction at a distance uniform in [0, eps], so denser near the image than a
    uniform draw; as torchattacks' PGDL2 does."""
    bn: str = "eval"
    """Batch norm during the attack. `eval`: running statistics. `train`: batch statistics, and every forward pass
    updates the running ones (the reference code's training attacks). `frozen`: batch statistics, and the running
    ones are left as they were."""
    norm: str = "linf"
    """`linf` (the paper's) or `l2`, the Euclidean norm of a whole image."""
    restarts: int = 1
    """Independent attacks, of which each image keeps its strongest: one that succeeds (the prediction is no longer
    the label, or it is the target), and of these the one with the highest loss. With more than one, each takes one
    more forward pass to compare them."""
    targeted: bool = False
    """The labels given are classes to reach, and the cross-entropy is descended."""

    def __post_init__(self):
        for name in ("eps", "step_size", "steps"):
            if not getattr(self, name) >= 0:  # NaN too
                raise DwlthError(f"attack: {name} is {getattr(self, name)}, not 0 or more")
        for name, choices in {"bn": ("eval", "train", "frozen"), "norm": ("linf", "l2")}.items():
            if getattr(self, name) not in choices:
                raise DwlthError(f"attack: {name} is {getattr(self, name)!r}, not one of {', '.join(choices)}")
        if self.restarts < 1:
            raise DwlthError(f"attack: restarts is {self.restarts}, not 1 or more")
        if self.restarts > 1 and not self.random_start:
            raise DwlthError(f"attack: restarts is {self.restarts}, but without random_start all would be the same")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: Draws = None, starts: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Adversarial images for `x` (float [N, C, H, W] in [0, 1]) with labels, or targets, `y` (int64 [N]); same
        shape, within `eps` of `x` and within [0, 1].

        `model` maps pixels in [0, 1] to logits, so it normalises inside. Its mode, gradients, `requires_grad` flags
        and (unless `bn="train"`) batch-norm statistics are left as they were. `generator` draws the starts.
        Of k generators the first draws those of rows 0, k, 2k, ..., the second those of rows 1, k + 1, 2k + 1, ..., as
        the members of a `dwlth.fast.stack.Stack` have them.
        Or `starts` gives them: the rows of these images in what `self.starts` drew for more.
        """
        if self.steps == 0:
            return x
        first, *others = (self.starts(x, generator) if starts is None else starts) or [None]
        with torch.enable_grad(), batch_norm(model, self.bn):
            adv = self._climb(model, x, y, first)
            if self.restarts > 1:
                success, loss = self._strength(model, adv, y)
            for start in others:
                other = self._climb(model, x, y, start)
                its_success, its_loss = self._strength(model, other, y)
                better = (its_success & ~success) | ((its_success == success) & (its_loss > loss))
                adv[better], success[better], loss[better] = other[better], its_success[better], its_loss[better]
        return adv

    def starts(self, images: Tensor, generator: Draws = None) -> list[Tensor]:
        """The random starts of an attack on a batch like `images`, as offsets from them: one for each of `restarts`, or
        none."""
        return [self._offset(images, generator) for _ in range(self.restarts * self.random_start * (self.steps > 0))]

    def survivors(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> int:
        """How many images (arguments as for a call) the model gets right at the start and after every step: what is
        broken once counts as broken, and needs no more steps. So where half of a batch is, only the other half goes on:
        in few sizes, since hardware libraries prepare themselves for each new one.
        """
        unbroken = torch.ones_like(y, dtype=torch.bool)
        with torch.enable_grad(), batch_norm(model, self.bn):
            for _ in range(self.restarts):
                project, adv = self._start(x, self._offset(x, generator) if self.random_start else None)
                for _ in range(self.steps):
                    adv = adv.detach().requires_grad_()
                    logits = model(adv)
                    unbroken &= (logits.argmax(1) == y) != self.targeted
                    left = int(unbroken.sum())
                    if left == 0:
                        return 0
                    adv = self._step(logits, adv, y, project)
                    if 2 * left <= len(y):
                        half = unbroken.int().argsort(descending=True, stable=True)[: len(y) // 2]
                        x, y, adv, unbroken = x[half], y[half], adv[half], unbroken[half]
                        project = self._projection(x)
                with torch.no_grad():
                    unbroken &= (model(adv).argmax(1) == y) != self.targeted
        return int(unbroken.sum())

    def _projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Onto the ball around `x`, and [0, 1]."""
        if self.norm == "l2":
            return partial(_project_l2, x=x, eps=self.eps)
        return partial(torch.clamp, min=(x - self.eps).clamp_(min=0), max=(x + self.eps).clamp_(max=1))

    def _offset(self, x: Tensor, generator: Draws) -> Tensor:
        generators = generator if isinstance(generator, Sequence) else [generator]
        draws = [self._draw(x[:: len(generators)], each) for each in generators]
        return draws[0] if len(draws) == 1 else torch.stack(draws, 1).flatten(0, 1)

    def _start(self, x: Tensor, offset: Tensor | None) -> tuple[Callable, Tensor]:
        """The projection of an attack, and where it starts."""
        project = self._projection(x)
        return project, x if offset is None else project(x + offset)

    def _draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        draw = torch.empty_like(x)
        if self.norm == "linf":
            return draw.uniform_(-self.eps, self.eps, generator=generator)
        direction = draw.normal_(generator=generator)
        distance = x.new_empty(len(draw), 1, 1, 1).uniform_(0, self.eps, generator=generator)
        return direction * (distance / _length(direction))

    def _climb(self, model: nn.Module, x: Tensor, y: Tensor, offset: Tensor | None) -> Tensor:
        """One attack from one start."""
        project, adv = self._start(x, offset)
        for _ in range(self.steps):
            adv = adv.detach().requires_grad_()
            adv = self._step(model(adv), adv, y, project)
        return adv

    def _step(self, logits: Tensor, adv: Tensor, y: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        # the sum: with the mean, gradients would be smaller in larger batches, in no direction another
        loss = F.cross_entropy(logits, y, reduction="sum")
        # autograd.grad with one input computes no weight gradients, and leaves every .grad alone
        (gradient,) = torch.autograd.grad(-loss if self.targeted else loss, adv)
        if self.norm == "l2":  # a very confident network has gradients whose squares are 0 in float32
            gradient /= gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min_(torch.finfo(gradient.dtype).tiny)
        along = gradient / _length(gradient) if self.norm == "l2" else gradient.sign()
        return project(torch.add(adv.detach(), along, alpha=self.step_size))

    @torch.no_grad()
    def _strength(self, model: nn.Module, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """For each image, whether the attack succeeds (bool [N]), and the loss that it climbed (float [N])."""
        logits = model(adv)
        loss = F.cross_entropy(logits, y, reduction="none")
        return (logits.argmax(1) == y) == self.targeted, -loss if self.targeted else loss


def _length(x: Tensor) -> Tensor:
    """The L2 norm of each image, [N, 1, 1, 1]; not quite 0, so that one can divide by it."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


def _project_l2(adv: Tensor, x: Tensor, eps: float) -> Tensor:
    # clipping to [0, 1], where x lies, only brings the image nearer to x
    delta = adv - x
    return (x + delta * (eps / _length(delta)).clamp_max(1)).clamp_(0, 1)


@contextmanager
def batch_norm(model: nn.Module, mode: str):
    """Run the attack's passes with the model in `mode`, then put every module's own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    with frozen(model) if mode == "frozen" else nullcontext():
        model.train(mode != "eval")
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def frozen(model: nn.Module):
    """Put the model's buffers, which are its running statistics, back to what they were."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
