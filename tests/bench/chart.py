"""Draw the chart of docs/performance.md from .run/bench.json: what a million records take, and how near each target is.

.run/env/evaluate/bin/python tests/bench/chart.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent.parent
GOOD, BAD, STAGES = "#2a7f62", "#c2452d", {"extract": "#9ecae1", "transform": "#4292c6", "load": "#08519c"}
MILLION = "1 000 000 records: "
# Other ways to load the same records.
OTHERS = (r"psql \copy of the ready rows", "COPY of the raw files", "read_csv, merge, to_sql")


def main() -> None:
    """Draw it."""
    mpl.use("Agg")
    figures = json.loads((ROOT / ".run/bench.json").read_text())["figures"]
    judged = [figure for figure in figures if figure["target"] is not None]
    height = 2.2 + 0.2 * len(judged)
    page, (above, below) = plt.subplots(2, 1, figsize=(9, height), height_ratios=[1.6, height - 1.6], layout="constrained")
    draw_million(above, figures)
    draw_targets(below, judged)
    page.savefig(ROOT / "docs/performance.png", dpi=110)


def draw_million(axes: plt.Axes, figures: list[dict[str, Any]]) -> None:
    """Show the stages' seconds one after the other, and beneath those of the other ways, which their ratios tell."""
    seconds = {figure["name"]: figure["value"] for figure in figures if not figure["ratio"]}
    left = 0.0
    for stage, colour in STAGES.items():
        bar = axes.barh("extract, transform, load", seconds[MILLION + stage], left=left, color=colour, label=stage)
        left += seconds[MILLION + stage]
    axes.bar_label(bar, labels=[f"{left:.1f}"], padding=3)
    for figure in figures:
        if figure["name"].startswith(MILLION) and figure["compared_with"] in OTHERS:
            bar = axes.barh(figure["compared_with"], figure["value"] / figure["ratio"], color="#bbbbbb")
            axes.bar_label(bar, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_title("A million records: seconds")
    axes.legend(loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_targets(axes: plt.Axes, judged: list[dict[str, Any]]) -> None:
    """Show for each figure how much of its target it takes; what is beyond 1 misses it."""
    names = [" – ".join(filter(None, (figure["name"], figure["compared_with"]))) for figure in judged]
    shares = [told(figure) / figure["target"] for figure in judged]
    bars = axes.barh(names, [max(share, 0.01) for share in shares], color=[GOOD if f["met"] else BAD for f in judged])
    numbers = axes.bar_label(bars, labels=[f"{share:.3g}" for share in shares], padding=3, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    for number in numbers:  # that of a bar just below its target stands where the line is
        number.set(bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}, zorder=3)
    axes.set(title="Share of its target that each figure takes; 1 is the target", xscale="log")
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(x=0.15, y=0.01)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def told(figure: dict[str, Any]) -> float:
    """Return what is held against the target."""
    return next(value for value in (figure["ratio"], figure["difference"], figure["value"]) if value is not None)


if __name__ == "__main__":
    main()
