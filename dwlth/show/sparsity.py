"""What sparsity buys, of the tickets on disk: smaller files, and channels that can be removed.

The times that this saves are measured by `benchmarks/sparsity.py`; docs/sparsity.md has them.
"""

import copy

import pandas as pd
import torch
from matplotlib.figure import Figure

from dwlth import data, sources, tickets
from dwlth.errors import NotYet
from dwlth.fast.shrink import channels, shrink
from dwlth.masks import Mask
from dwlth.models import Classifier
from dwlth.results import Folder, sparsity_by_round
from dwlth.runs import Run
from dwlth.show import style
from dwlth.show.style import WIDTH, Picture, legend, sparsity_axis, styled

PANELS = {"smaller": "File (times smaller)", "dead": "Channels gone (%)", "saved": "Multiplications saved (%)"}


@torch.no_grad()
def savings(folder: Folder, seed: int = 0, of: tuple[str, int] | None = None) -> pd.DataFrame:
    """A row for each source of this seed and each of its tickets of IMP on disk, or for the one `of` this source and
    round: `source`, `round`, `sparsity`, and of the source's weights under that mask

    - `smaller`: how many times fewer bytes than the dense network they take (`packed_bytes`)
    - `dead`: the part of the channels that `dwlth.fast.shrink` removes for inference, in percent
    - `saved`: the part of the convolutions' multiplications that goes with them, in percent

    Raises:
        NotYet: where no ticket is on disk with its source.
    """
    found = {}
    for source in folder.preset.pretrain if of is None else of[:1]:
        paths = sorted(folder.ticket(Run("imp", source, seed, 1)).parent.glob("*.safetensors"))
        paths = [path for path in paths if path.stem.isdigit()]  # some systems leave ._01 beside 01
        found[source] = [path for path in paths if of is None or int(path.stem) == of[1]]
        if not folder.source(Run("pretrain", source, seed)).exists():
            found[source] = []
    if not any(found.values()):
        which = f'stage="imp", seed={seed}'
        raise NotYet(
            f"no ticket of seed {seed} is on disk: `experiment.have(experiment.runs({which}), files=True)` makes them"
        )
    task = data.blank(folder.preset.upstream) or folder.dataset(folder.preset.upstream, 0)
    seen, _ = next(task.test.take([0]).batches(1, augment=next(iter(folder.preset.imp.values())).augment))
    images = torch.rand(8, *seen.shape[1:], generator=torch.Generator().manual_seed(0))
    rows = []
    for source, paths in found.items():
        dense = sources.load(folder, Run("pretrain", source, seed)).cpu().eval() if paths else None
        for path in paths:
            model, (mask, _) = copy.deepcopy(dense), tickets.load(path)
            mask.apply_(model.net)
            whole, packed = packed_bytes(model, mask)
            small = shrink(model, images)
            dead = 100 * (1 - channels(small) / channels(model))
            saved = 100 * (1 - multiplications(small, images) / multiplications(model, images))
            row = {"source": source, "round": int(path.stem), "sparsity": mask.sparsity, "smaller": whole / packed}
            rows.append(row | {"dead": dead, "saved": saved})
    return pd.DataFrame(rows)


@styled()
def draw_savings(found: pd.DataFrame) -> Figure:
    """The columns of `savings` against sparsity, a panel each, by source."""
    looks = style.of_sources(found["source"])
    figure = Picture(figsize=(WIDTH, 2.9), layout="constrained")
    for panel, (column, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items()):
        style.lines(panel, found, "round", column, "source", looks)
        sparsity_axis(panel, sparsity_by_round(found))
        panel.set(title=title, ylabel="", xlabel="Sparsity (%)", ylim=(-3, 100) if "%" in title else (0, None))
    legend(figure, *zip(style.handles(looks)))
    figure.suptitle("What sparsity buys: the weights of each source under its tickets by IMP (one seed)")
    return figure


def packed_bytes(model: Classifier, mask: Mask) -> tuple[int, int]:
    """Bytes of a dense network, and of a sparse one by itself: a bit for each prunable weight, each survivor, and the
    head, biases and batch norm in full."""
    whole = sum(tensor.nbytes for tensor in model.net.state_dict().values())
    bits = sum(-(-tensor.numel() // 8) for tensor in mask.values())
    return whole, bits + whole - 4 * (mask.total - mask.kept)


def multiplications(model: Classifier, images: torch.Tensor) -> int:
    """Of the convolutions, for one of the images."""
    found: list[int] = []
    hooks = [
        module.register_forward_hook(
            lambda layer, _, out: found.append(out[0, 0].numel() * layer.weight.numel())  # for each pixel, all
        )
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    model(images[:1])
    for hook in hooks:
        hook.remove()
    return sum(found)
