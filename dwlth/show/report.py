"""The verdict as text."""

import pandas as pd

from dwlth.presets import SOURCES
from dwlth.verdict import CRITERIA, PAPER


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """The verdict in words, a row each as in `found`."""
    return pd.DataFrame(
        {
            "data": found["fraction"].map("{:.0%}".format),
            "source": found["source"],
            "seeds": found["seeds"],
            "sparsest double-win": found["sparsity"].map("{:.2%}".format) + found["round"].map(" (round {})".format),
            "first fails at": found["fails_at_sparsity"].map(lambda s: "" if pd.isna(s) else f"{s:.2%}"),
            "by": found["fails_by"].str.replace(" transfer", ""),  # short enough for pandas to show it whole
        }
    )


def gains(found: pd.DataFrame) -> pd.DataFrame:
    """What each sparsest double-win ticket of the verdict gains over its dense network, a row each as in `found`."""
    return pd.concat([readable(found)[["data", "source", "sparsest double-win"]], found[list(CRITERIA)]], axis=1)


def report(found: pd.DataFrame, preset: str) -> str:
    """The verdict as text, beside the paper's numbers."""
    table = readable(found)
    lines = [f"Sparsest double-win tickets, preset {preset} (each within its tolerance of the dense network)"]
    over_dense = gains(found)
    for task, group in table.groupby(found["downstream"], sort=False):
        lines += ["", f"to {task}", group.to_string(index=False, justify="left")]
        lines += ["", "these tickets over the dense network, in points (and 95 % confidence interval over the seeds)"]
        lines += [over_dense.loc[group.index].to_string(index=False, justify="left")]
    if PAPER.exists():
        paper = pd.read_csv(PAPER)
        paper["sparsity"] = paper["sparsity"].map("{:.2%}".format) + paper["round"].map(" (round {})".format)
        lines += ["", "The paper's, another scale of experiment (ResNet-50, ImageNet, 100 % of the data)"]
        lines += [paper.pivot(index="source", columns="downstream", values="sparsity").loc[list(SOURCES)].to_string()]
    return "\n".join(lines)


def report_autoattack(table: pd.DataFrame) -> str:
    """RA under AutoAttack beside that under the evaluation attack, on the same images: means over the seeds."""
    runs = table[table["stage"] == "autoattack"]
    if not len(runs):
        return "no network under AutoAttack yet"
    shown = runs.groupby(["downstream", "source", "round"], sort=False).agg(
        seeds=("seed", "nunique"),
        sparsity=("sparsity", "first"),
        SA=("sa", "mean"),
        RA=("ra_pgd", "mean"),
        AutoAttack=("ra", "mean"),
    )
    percent = {name: "{:.2%}".format for name in ("sparsity", "SA", "RA", "AutoAttack")}
    return (
        "RA after adversarial transfer, under the evaluation attack and under AutoAttack\n"
        + shown.reset_index().to_string(index=False, formatters=percent)
    )
