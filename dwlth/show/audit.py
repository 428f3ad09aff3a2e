"""What an audit found (`Folder.audit`), as a table and as a picture."""

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dwlth.presets import SOURCES
from dwlth.show import style
from dwlth.show.style import WIDTH, Picture, styled

NUMBER = re.compile(r"\d+\.?\d*")


def checks(found: pd.DataFrame) -> pd.DataFrame:
    """A row for each check, with what an honest network shows, and a column for each network: what was found, and
    whether it passes. Of a network with several seeds: the mean of what was found, and how many pass."""
    found = found.assign(
        check=found["check"].str.replace(r"(?<=images made for ).*", "another network", regex=True),
        network=_networks(found),
    )
    shown = [(*names, _over_seeds(rows)) for names, rows in found.groupby(["check", "honest", "network"], sort=False)]
    wide = pd.DataFrame(shown, columns=["check", "honest", "network", "shown"])
    wide = wide.pivot(index=["check", "honest"], columns="network", values="shown")
    order = found[["check", "honest"]].drop_duplicates()
    wide = wide.reindex(pd.MultiIndex.from_frame(order), columns=found["network"].unique()).fillna("")
    return wide.rename_axis(columns=None).reset_index("honest").rename(columns={"honest": "honest networks"})


def _over_seeds(rows: pd.DataFrame) -> str:
    """What one check found in each seed of a network, in few words."""
    found, verdicts = rows["found"].iloc[0], rows["verdict"][rows["verdict"] != ""]
    verdict = "".join(verdicts[:1])
    if len(rows) > 1:
        means = np.mean([[float(number) for number in NUMBER.findall(text)] for text in rows["found"]], axis=0)
        found = NUMBER.sub("{:.1f}", found).format(*means)
        verdict = verdict and f"{(verdicts == 'passes').sum()} of {len(verdicts)} pass"
    return f"{found} ({verdict})" if verdict else found


@styled()
def draw_audit(found: pd.DataFrame) -> Figure:
    """RA of each network against the attack's radius, and SA against the severity of each corruption, both in the mean
    over seeds. Dense networks have full lines, tickets dashed ones."""
    found = found.assign(network=_networks(found))
    sources = style.of_sources(found["source"])
    looks = {
        of.network: sources[of.source]._replace(label=of.network, dashes=(4, 1.5) if of.sparsity else "")
        for of in found.drop_duplicates("network").itertuples()
    }
    radii = next(check for check in found["check"] if check.startswith("RA at ") and check.endswith(" eps"))
    corruptions = [check for check in found["check"].unique() if check.endswith(", five severities")]
    titles = {radii: ("RA", "Radius (times eps)")}
    titles |= {check: (check.removesuffix(", five severities"), "Severity") for check in corruptions}
    figure = Picture(figsize=(WIDTH, 4.6), layout="constrained")
    grid = figure.subplots(2, -(-len(titles) // 2), squeeze=False)
    for panel, (check, (title, axis)) in zip(grid.flat, titles.items()):
        of = found[found["check"] == check]
        values = of["found"].str.findall(NUMBER).map(lambda numbers: [float(number) for number in numbers])
        places = range(1, 1 + len(values.iloc[0]))
        if check == radii:
            clean = found[found["check"] == "SA and RA"].set_index("id")["found"].str.extract(f"({NUMBER.pattern})")[0]
            values = [[float(clean[id_]), *numbers] for id_, numbers in zip(of["id"], values)]
            places = [0.0, *(float(number) for number in NUMBER.findall(radii))]
        points = of.assign(value=values, place=[[*places]] * len(of)).explode(["place", "value"])
        points = points.astype({"place": float, "value": float})
        style.lines(panel, points, "place", "value", "network", looks, estimator="mean", errorbar="se")
        panel.set(title=title, xlabel=axis, ylabel="", ylim=(0, 100))
    for line in grid:
        line[0].set_ylabel("Accuracy (%)")
    for panel in grid.flat[len(titles) :]:
        panel.set_axis_off()
    band = style.band_over(found["seed"])
    figure.suptitle(f"Networks after adversarial transfer: other radii of the attack, and corruptions{band}")
    figure.legend(handles=style.handles(looks), loc="outside lower center", ncols=3, handlelength=4)
    return figure


def _networks(found: pd.DataFrame) -> pd.Series:
    """A name for each row's network, the same for all seeds: source and sparsity, and the id where that is not
    enough."""
    what = found["sparsity"].map(lambda sparsity: f"{100 * sparsity:.2f} % pruned" if sparsity else "dense")
    names = found["source"].map(lambda source: SOURCES.get(source, source)) + ", " + what
    several = found.groupby([names, found["seed"]])["id"].nunique().max() > 1  # of other tasks, or fractions
    return names + ", id " + found["id"].astype(str) if several else names
