"""Every number of every experiment."""

from collections.abc import Iterable

from dwlth.errors import DwlthError
from dwlth.presets.cifar import cifar, cifar_small
from dwlth.presets.digits import digits
from dwlth.presets.paper import paper
from dwlth.presets.preset import Preset as Preset

SOURCES = {"standard": "Standard", "fast_adversarial": "Fast adversarial", "adversarial": "Adversarial"}
"""The paper's pre-training sources, in its order, with their names in figures; a preset may have others."""


def in_order(sources: Iterable[str]) -> list[str]:
    """Each of these sources once: the paper's first, in its order, then others by name."""
    return [name for name in SOURCES if name in set(sources)] + sorted(set(sources) - SOURCES.keys())


def in_words(source: str) -> str:
    """A source in the middle of a sentence."""
    return SOURCES[source].lower() if source in SOURCES else source


PRESETS = {preset.name: preset for preset in (digits(), cifar_small(), cifar(), paper())}
"""- `digits`: a small ResNet from handwritten digits 0-4 to 5-9, minutes on 2 CPU cores. All its numbers but those
  marked are our choice, by experiment (docs/digits.md).
- `cifar-small`: a ResNet of 306,016 convolution weights from CIFAR-100 to CIFAR-10 at 32 px, 6 to 34 hours on 2 CPU
  cores. Attacks, fractions and IMP's way are the paper's; epochs, batches and learning rates are our choice, by
  experiment (docs/cifar-small.md).
- `cifar`: ResNet-18 with a 3x3 stem from CIFAR-100 to CIFAR-10 at 32 px, for one GPU. Attacks and augmentation are the
  paper's; epochs, batches and learning rates are our choice, and have not been tried on a GPU yet. The whole grid is
  some 1.4e18 floating-point operations by count (1.1e9 for an image's forward pass): an hour at 400 TFLOP/s.
- `paper`: ResNet-50 from ImageNet to CIFAR-10, CIFAR-100 and SVHN at 224 px, with the numbers of the paper and of its
  public code, as marked where they stand. Momentum 0.9 and weight decay 5e-4, where none is said, are theirs too."""


def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        DwlthError: for a name that is not in `PRESETS`.
    """
    if name not in PRESETS:
        raise DwlthError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]
