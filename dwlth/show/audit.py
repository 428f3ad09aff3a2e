"""What an audit found (`Folder.audit`), as a table and as a picture."""

import pandas as pd
from matplotlib.figure import Figure

from dwlth.presets import SOURCES
from dwlth.show import style
from dwlth.show.style import WIDTH, Picture, styled


def checks(found: pd.DataFrame) -> pd.DataFrame:
    """A row for each check, with what an honest network shows, and a column for each network: what was found, and
    whether it passes."""
    found = found.assign(
        check=found["check"].str.replace(r"(?<=images made for ).*", "another network", regex=True),
        shown=found["found"] + found["verdict"].map(lambda verdict: f" ({verdict})" if verdict else ""),
        network=_networks(found),
    )
    wide = found.pivot(index=["check", "honest"], columns="network", values="shown")
    order = found[["check", "honest"]].drop_duplicates()
    wide = wide.reindex(pd.MultiIndex.from_frame(order), columns=found["network"].unique()).fillna("")
    return wide.rename_axis(columns=None).reset_index("honest").rename(columns={"honest": "honest networks"})


@styled()
def draw_audit(found: pd.DataFrame) -> Figure:
    """RA of each network against the attack's radius, and SA against the severity of each corruption. Dense networks
    have full lines, tickets dashed ones."""
    found = found.assign(network=_networks(found))
    looks = style.of_sources(found["source"])
    radii = next(check for check in found["check"] if check.startswith("RA at ") and check.endswith(" eps"))
    places = [float(number) for number in radii.removeprefix("RA at ").removesuffix(" eps").split(", ")]
    corruptions = [check for check in found["check"].unique() if check.endswith(", five severities")]
    titles = {radii: ("RA", "Radius (times eps)")}
    titles |= {check: (check.removesuffix(", five severities"), "Severity") for check in corruptions}
    figure = Picture(figsize=(WIDTH, 4.6), layout="constrained")
    grid = figure.subplots(2, -(-len(titles) // 2), squeeze=False)
    for panel, (check, (title, axis)) in zip(grid.flat, titles.items()):
        for row in found[found["check"] == check].itertuples():
            values = [float(number) for number in row.found.removesuffix(" %").split(", ")]
            look = looks[row.source].line | {"linestyle": "--" if row.sparsity else "-", "label": row.network}
            x = range(1, 1 + len(values))
            if check == radii:
                clean = found[(found["network"] == row.network) & (found["check"] == "SA and RA")]["found"].item()
                x, values = [0, *places], [float(clean.partition(" and ")[0]), *values]
            panel.plot(x, values, **look)
        panel.set(title=title, xlabel=axis, ylim=(0, 100))
    for line in grid:
        line[0].set_ylabel("Accuracy (%)")
    for panel in grid.flat[len(titles) :]:
        panel.set_axis_off()
    seeds = ", ".join(map(str, sorted(found["seed"].unique())))
    figure.suptitle(f"Networks after adversarial transfer, seed {seeds}: other radii of the attack, and corruptions")
    figure.legend(handles=grid.flat[0].get_lines(), loc="outside lower center", ncols=3)
    return figure


def _networks(found: pd.DataFrame) -> pd.Series:
    """A name for each row's network: source and sparsity, and the seed or the id where that is not enough."""
    what = found["sparsity"].map(lambda sparsity: f"{100 * sparsity:.2f} % pruned" if sparsity else "dense")
    names = found["source"].map(lambda source: SOURCES.get(source, source)) + ", " + what
    for column in ("seed", "id"):
        if names.nunique() < found["id"].nunique():
            names = names + f", {column} " + found[column].astype(str)
    return names
