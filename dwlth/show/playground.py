"""Draw a digit, break it, prune it: the tickets of the handwritten digits, attacked in the browser as one draws.

`playground.js` holds the network, its gradient, PGD and the page, in plain JavaScript. This module supplies the
weights: `page` writes a file that needs no kernel, `widget` shows the same in a notebook or in Voila.
"""

import base64
import html
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dwlth.errors import DwlthError
from dwlth.files import read_about, write
from dwlth.models import Classifier
from dwlth.presets import in_order
from dwlth.results import Folder, read_table
from dwlth.running import grid
from dwlth.runs import Run
from dwlth.show import style
from dwlth.show.attacked import class_names
from dwlth.transfer import load

if TYPE_CHECKING:
    from dwlth.interface.experiment import Experiment

HERE = Path(__file__).parent
EACH = 12
"""Test images of each class that the page offers."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Draw a digit, break it, prune it</title>
<style>
{css}
:root {{ color-scheme: light dark; }}
body {{ margin: 0; background: light-dark(#fff, #16181d); color: light-dark(#16181d, #f0f1f4);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }}
main {{ max-width: 1280px; margin: 0 auto; padding: 8px 16px; }}
h1 {{ font-size: 22px; margin: 0; }}
main > p {{ margin: 2px 0 8px; max-width: 160ch; }}
</style>
</head>
<body>
<main>
<h1>Draw a digit, break it, prune it</h1>
<p>{lead}</p>
<div id="playground"></div>
</main>
<script type="application/json" id="data">{data}</script>
<script type="module">
{js}
mount(document.getElementById("playground"), JSON.parse(document.getElementById("data").textContent));
</script>
</body>
</html>
"""


def runs(folder: Folder, regime: str = "adversarial", seed: int = 0) -> list[Run]:
    """The transfers that the playground shows, source by source, each from the dense network to the sparsest ticket: of
    the preset's rounds, and of those that the table has of every source and whose tickets are on disk.

    Raises:
        DwlthError: for a regime that the preset does not have, and for a preset of another network than `digits`.
    """
    preset = folder.preset
    if preset.network != "small_resnet":
        raise DwlthError(
            f"the playground draws 8x8 pixels for the network small_resnet, and {preset.name} has {preset.network}: "
            "choose the preset digits"
        )
    if regime not in preset.regimes:
        raise DwlthError(f"regime is {regime!r}: choose from {', '.join(preset.regimes)}")
    sources = in_order(preset.pretrain)
    first = Run("transfer", sources[0], seed, 0, "imp", preset.downstream[0], regime, 1.0, preset.source_of(seed))
    rounds = set(preset.rounds)
    if folder.table.exists():
        table = read_table(folder.table).query("stage == 'transfer' and method == 'imp' and regime == @regime")
        table = table.query("fraction == 1 and seed == @seed and downstream == @first.downstream")
        of_all = table.groupby("round")["source"].nunique() == len(sources)
        tickets = lambda k: [folder.ticket(replace(first, source=source, round=k)) for source in sources]
        rounds |= {int(k) for k in of_all.index[of_all] if all(path.exists() for path in tickets(int(k)))}
    return [replace(first, source=source, round=k) for source in sources for k in sorted(rounds)]


def payload(folder: Folder, regime: str = "adversarial", seed: int = 0) -> dict[str, Any]:
    """All that `playground.js` needs, as plain JSON values: the networks of `runs`, which are to be on disk, and `EACH`
    test images of each class."""
    preset, chosen = folder.preset, runs(folder, regime, seed)
    task = folder.dataset(preset.downstream[0], seed).to("cpu")
    first = replace(folder, device="cpu")
    looks, sources = style.of_sources(preset.pretrain), {}
    for run in chosen:
        model = load(first, run)
        about = read_about(folder.network(run))
        look = looks[run.source]
        own = {"label": look.label, "colour": look.colour, "marker": look.marker, "dashes": list(look.dashes)}
        source = sources.setdefault(run.source, {"name": run.source, **own, "networks": []})
        source["networks"].append({"sa": about["sa"], "ra": about["ra"], **_packed(model)})
    images = [(task.test.labels == label).nonzero().flatten()[:EACH] for label in range(task.classes)]
    picked = torch.cat(images).tolist()
    names = class_names(preset.downstream[0], task.classes)
    return {
        "side": task.test.images.shape[-1],
        "classes": names,
        "mean": model.mean.item(),
        "std": model.std.item(),
        "convolutions": [
            {"name": name, "shape": list(conv.weight.shape), "stride": conv.stride[0]}
            for name, conv in _convolutions(model)
        ],
        "eps": preset.evaluation.eps,
        "step": preset.evaluation.step_size,
        "steps": preset.evaluation.steps,
        "rounds": list(dict.fromkeys(run.round for run in chosen)),
        "sources": list(sources.values()),
        "columns": EACH,
        "labels": task.test.labels[picked].tolist(),
        "images": _base64(task.test.images[picked].numpy()),
        "first": _telling(folder, chosen, picked),
        "regime": regime,
    }


def page(experiment: "Experiment", path: str | Path, regime: str = "adversarial", seed: int = 0) -> Path:
    """Write the playground as one HTML file, with weights as float32, that needs no kernel, server or internet.
    Networks that are not on disk are made first, with a progress bar: in about a minute where sources and tickets are.

    Returns:
        The path.

    Raises:
        DwlthError: as `runs`.
        NotYet: where making the networks would take more than ten minutes.
    """
    folder = experiment.folder
    _have(folder, runs(folder, regime, seed))
    data = payload(folder, regime, seed)
    upstream, downstream = (
        ", ".join(class_names(task, folder.dataset(task, seed).classes))
        for task in (folder.preset.upstream, folder.preset.downstream[0])
    )
    lead = (
        f"Three small networks learned the digits {upstream}: one in the ordinary way, two while being attacked. Each "
        f"was pruned. What was left, the ticket, learned the digits {downstream} ({regime} training). Draw one of "
        "these, or pick a test image. Then attack it, prune the networks, and see which ticket falls first."
    )
    parts = {name: (HERE / f"playground.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    text = PAGE.format(data=json.dumps(data), lead=html.escape(lead), **parts)
    write(Path(path), lambda file: Path(file).write_text(text, encoding="utf-8"))
    return Path(path)


def widget(experiment: "Experiment", regime: str = "adversarial", seed: int = 0) -> Any:
    """The playground for a notebook or Voila, with pickers for the regime and the seed. The browser answers; the kernel
    is asked for networks alone. Where some are not on disk, a button makes them. A preset that the playground cannot
    draw for gets a text that says so."""
    import anywidget  # late, as it is needed here alone
    import ipywidgets as ipw
    import traitlets

    folder = experiment.folder
    try:
        runs(folder, regime, seed)
    except DwlthError as error:
        return ipw.HTML(html.escape(str(error)))

    class Playground(anywidget.AnyWidget):
        _esm, _css = HERE / "playground.js", HERE / "playground.css"
        data = traitlets.Dict().tag(sync=True)
        choice = traitlets.Dict().tag(sync=True)
        options = traitlets.Dict().tag(sync=True)
        missing = traitlets.Int().tag(sync=True)
        status = traitlets.Unicode().tag(sync=True)

        def __repr__(self) -> str:
            return "(widgets: shown while the notebook runs)"

        @traitlets.observe("choice")
        def _fill(self, _=None) -> None:
            wanted = {name: self.choice[name] for name in ("regime", "seed")}
            try:
                chosen = runs(folder, **wanted)
                if self.choice.get("make"):
                    _have(folder, chosen, partial(setattr, self, "status"))
                missing = [run for run in chosen if not folder.has(run)]
                self.data = {} if missing else payload(folder, **wanted)
                self.missing = len(missing)
                words = f"{len(missing)} of these {len(chosen)} networks are not on disk. Making them takes minutes."
                self.status = words if missing else ""
            except DwlthError as error:
                self.status = str(error)
            except KeyboardInterrupt:
                self.status = "Interrupted: what is trained is kept. Make them once more to go on."
                raise

    seeds = list(range(max(folder.preset.seeds, seed + 1)))
    options = {"regime": folder.preset.regimes, "seed": seeds}
    return Playground(options=options, choice={"regime": regime, "seed": seed})


def _have(folder: Folder, chosen: list[Run], tell: Callable[[str], Any] = lambda text: None) -> None:
    """Make the networks that are not on disk."""
    epochs = dict.fromkeys(chosen, 0)

    def on_epoch(run: Run, row: dict | None) -> None:
        epochs[run] = epochs.get(run, 0) + (row is not None)
        tell(f"Training: {sum(epochs.values())} epochs done ...")

    if missing := [run for run in chosen if not folder.has(run)]:
        tell(f"Making {len(missing)} networks ...")
        grid.complete(folder, missing, files=True, on_epoch=on_epoch, command="dwlth.show.playground")


def _telling(folder: Folder, chosen: list[Run], picked: list[int]) -> int:
    """Where to begin: the one of these images that tells most under the preset's attack. The first source's dense
    network holds and its sparsest ticket below 95 % falls, all tickets below 95 % of the others hold, each clearly."""
    images, labels = next(folder.dataset(chosen[0].downstream, chosen[0].seed).test.take(picked).batches(len(picked)))
    rounds = [run.round for run in chosen if (1 - folder.preset.prune_rate) ** run.round > 0.05]
    clearest = torch.ones(len(picked), device=images.device)
    for run in chosen:
        weak = run.source == chosen[0].source
        if run.round not in ({0, max(rounds)} if weak else rounds):
            continue
        model, generator = load(folder, run), torch.Generator(images.device).manual_seed(0)
        with torch.no_grad():
            shares = model(folder.preset.evaluation(model, images, labels, generator)).softmax(1)
        right = shares.gather(1, labels[:, None]).squeeze(1)
        ahead = right - shares.scatter(1, labels[:, None], 0).amax(1)
        clearest = clearest.minimum(-ahead if weak and run.round else ahead)
    return int(clearest.argmax())


def _convolutions(model: Classifier) -> list[tuple[str, torch.nn.Conv2d]]:
    return [(name, module) for name, module in model.net.named_modules() if isinstance(module, torch.nn.Conv2d)]


def _packed(model: Classifier) -> dict[str, Any]:
    """A network in base64: which of its convolution weights are not zero, in bits; and these weights, the scale and the
    shift of the batch norm behind each convolution, and the head, as little-endian float32."""
    bits, values = [], []
    for name, conv in _convolutions(model):
        weight = conv.weight.detach().flatten()
        norm = model.net.get_submodule(name.replace("conv", "bn").replace("downsample.0", "downsample.1"))
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        bits.append(weight != 0)
        values += [weight[weight != 0], scale, norm.bias.detach().double() - norm.running_mean.double() * scale]
    values += [model.net.fc.weight.detach().flatten(), model.net.fc.bias.detach()]
    kept = torch.cat(bits)
    return {
        "sparsity": 1 - kept.count_nonzero().item() / len(kept),
        "mask": _base64(np.packbits(kept.numpy())),
        "values": _base64(torch.cat([value.float() for value in values]).numpy().astype("<f4")),
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
