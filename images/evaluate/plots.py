"""The pictures of an evaluation. Each function returns a matplotlib figure that reads on light and dark grounds."""

from collections.abc import Callable

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from drift import Drift
from slices import THRESHOLDS

INK = "#7d8590"  # legible on white and on near-black
COLOURS = ("#2f81f7", "#e0823d", "#3fb27f", "#b56cd6", "#d65c7a", "#8c8c3a")
People = dict[str, tuple[np.ndarray, np.ndarray]]  # batch -> (y, p), each of shape (people,)
CROSS_VALIDATED = "cross validated"

plt.rcParams |= {
    "figure.figsize": (5.2, 4.2),
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "font.size": 10,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "svg.hashsalt": "heart",  # the same figure gives the same file
    "svg.fonttype": "none",
}


def roc(unseen: pd.DataFrame, sites: People) -> Figure:
    """Draw true against false positives: the mean of the folds with one standard deviation, and a line a batch."""
    grid = np.linspace(0, 1, 101)
    curves = []
    for _, fold in unseen.groupby(["repeat", "fold"]):
        false, true, _ = roc_curve(fold["target"], fold["probability"])
        curves.append(np.interp(grid, false, true))
    figure, axes = plt.subplots()
    _band(axes, grid, np.array(curves))
    for number, (batch, (y, p)) in enumerate(_with_both(sites), start=1):
        false, true, _ = roc_curve(y, p)
        axes.plot(false, true, label=batch, linewidth=1, color=COLOURS[number % len(COLOURS)])
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="false positives (1 − specificity)", ylabel="true positives (sensitivity)", aspect="equal")
    axes.legend(loc="lower right")
    return figure


def precision_recall(unseen: pd.DataFrame, sites: People) -> Figure:
    """Draw precision against recall: the mean of the folds with one standard deviation, and a line a batch."""
    grid = np.linspace(0, 1, 101)
    curves = []
    for _, fold in unseen.groupby(["repeat", "fold"]):
        precision, recall, _ = precision_recall_curve(fold["target"], fold["probability"])
        curves.append(np.interp(grid, recall[::-1], precision[::-1]))
    figure, axes = plt.subplots()
    _band(axes, grid, np.array(curves))
    for number, (batch, (y, p)) in enumerate(_with_both(sites), start=1):
        precision, recall, _ = precision_recall_curve(y, p)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(recall, precision, label=batch, linewidth=1, color=colour)
        axes.axhline(y.mean(), color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision; dotted: prevalence", ylim=(0, 1.02))
    axes.legend(loc="lower left")
    return figure


def _band(axes: Axes, grid: np.ndarray, curves: np.ndarray) -> None:
    mean, spread = curves.mean(axis=0), curves.std(axis=0)
    axes.plot(grid, mean, color=COLOURS[0], label=CROSS_VALIDATED)
    axes.fill_between(grid, np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1), color=COLOURS[0], alpha=0.2, linewidth=0)


def _with_both(people: People) -> list[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the batches outside the training batches that have both kinds of people."""
    return [(b, (y, p)) for b, (y, p) in people.items() if b != CROSS_VALIDATED and 0 < y.sum() < len(y)]


def reliability(y: np.ndarray, p: np.ndarray) -> Figure:
    """Draw what share has the disease against the probability predicted, by tenths of the people; below, how many got which."""
    figure, (axes, below) = plt.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    groups = _tenths(p)
    shares = np.array([y[g].mean() for g in groups])
    error = [1.96 * np.sqrt(max(s * (1 - s), 1e-9) / len(g)) for s, g in zip(shares, groups, strict=True)]
    axes.errorbar([p[g].mean() for g in groups], shares, yerr=error, marker="o", markersize=4, elinewidth=1)
    below.hist([p[y == 0], p[y == 1]], bins=np.linspace(0, 1, 21), stacked=True, label=["none", "disease"])
    axes.set(ylabel="share with disease", ylim=(-0.03, 1.03))
    below.set(xlabel="predicted probability of disease", ylabel="people")
    below.legend(fontsize=8, loc="upper center", ncols=2)
    return figure


def calibration_by_site(people: People) -> Figure:
    """Draw what share has the disease against the probability predicted, a line a batch."""
    figure, axes = plt.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    for batch, (y, p) in people.items():
        groups = _tenths(p)
        axes.plot([p[g].mean() for g in groups], [y[g].mean() for g in groups], marker="o", markersize=4, label=batch)
    axes.set(xlabel="predicted probability of disease", ylabel="share with disease", ylim=(-0.03, 1.03))
    axes.legend(loc="lower right")
    return figure


def _tenths(p: np.ndarray) -> list[np.ndarray]:
    """Return who belongs to which group of people with similar probabilities: ten, or fewer of at least 25 people."""
    return np.array_split(np.argsort(p, kind="stable"), min(10, max(2, len(p) // 25)))


def candidates(differences: dict[str, dict[str, float]]) -> Figure:
    """Draw the difference of each candidate's log-loss to that of the chosen one, with its 95 % interval: a forest plot."""
    figure, axes = plt.subplots()
    names = list(differences)[::-1]
    middle = np.array([differences[name]["difference"] for name in names])
    low, high = (np.array([differences[name][end] for name in names]) for end in ("low", "high"))
    axes.errorbar(middle, names, xerr=[middle - low, high - middle], fmt="s", markersize=5, capsize=3)
    axes.axvline(0, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="difference of log-loss (left of 0: better)", ylim=(-0.6, len(names) - 0.4))
    return figure


def decision_curve(benefit: dict[str, np.ndarray]) -> Figure:
    """Draw the net benefit of acting on the model, on everybody and on nobody, at each threshold."""
    figure, axes = plt.subplots()
    axes.plot(THRESHOLDS, benefit["model"], label="act on the model")
    axes.plot(THRESHOLDS, benefit["everybody"], label="act on everybody")
    axes.axhline(0, color=INK, linewidth=1, label="act on nobody")
    axes.set(xlabel="probability from which one acts", ylabel="net benefit, true positives a person",
             ylim=(-0.1, max(benefit["model"].max(), 0.1) * 1.1))  # fmt: skip
    axes.legend(loc="upper right")
    return figure


def drift(found: dict[str, list[Drift]]) -> Figure:
    """Draw the population stability index of each feature of each batch; a dot marks what has drifted."""
    table = pd.DataFrame({batch: {d.feature: d.index for d in drifts} for batch, drifts in found.items()})
    marks = {(batch, d.feature): "●" for batch, drifts in found.items() for d in drifts if d.drifted}
    return _heat_map(table, "population stability index (above 1: 1)", lambda b, f, v: f"{v:.1f} {marks.get((b, f), '')}")


def missing(share: pd.DataFrame) -> Figure:
    """Draw the share of people of each batch of whom each feature is not known. share: a row a batch, a column a feature."""
    return _heat_map(share.T, "share that is not known", lambda b, f, v: f"{100 * v:.0f} %" if v else "")


def _heat_map(table: pd.DataFrame, title: str, text: Callable[[str, str, float], str]) -> Figure:
    figure, axes = plt.subplots(figsize=(5.2, 5.2))
    axes.imshow(np.clip(table.to_numpy(), 0, 1), cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(table.shape[1]), table.columns)
    axes.set_yticks(range(table.shape[0]), table.index)
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        colour = "white" if value > 0.6 else "#24292f"
        axes.text(j, i, text(table.columns[j], table.index[i], value), ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(title, fontsize=10)
    return figure


def importance(drops: dict[str, np.ndarray]) -> Figure:
    """Draw how much the log-loss rises when a feature is shuffled: the mean and the range over the shuffles."""
    ranked = sorted(drops, key=lambda name: drops[name].mean())
    figure, axes = plt.subplots()
    means = [drops[name].mean() for name in ranked]
    spread = [[m - drops[n].min() for m, n in zip(means, ranked, strict=True)],
              [drops[n].max() - m for m, n in zip(means, ranked, strict=True)]]  # fmt: skip
    axes.barh(ranked, means, xerr=spread, color=COLOURS[0], ecolor=INK, alpha=0.8)
    axes.set(xlabel="rise of the log-loss when the feature is shuffled")
    return figure
