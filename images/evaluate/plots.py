"""The pictures of an evaluation. Each function returns a matplotlib figure that reads on light and dark grounds."""

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

INK = "#7d8590"  # legible on white and on near-black
COLOURS = ("#2f81f7", "#e0823d", "#3fb27f", "#b56cd6", "#d65c7a", "#8c8c3a")
People = dict[str, tuple[np.ndarray, np.ndarray]]  # batch -> (y, p)

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


def roc(people: People) -> Figure:
    """Draw true against false positives at every threshold, a line a batch."""
    figure, axes = plt.subplots()
    for batch, (y, p) in people.items():
        if 0 < y.sum() < len(y):
            false, true, _ = roc_curve(y, p)
            axes.plot(false, true, label=batch)
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="false positives (1 − specificity)", ylabel="true positives (sensitivity)", aspect="equal")
    axes.legend(loc="lower right")
    return figure


def precision_recall(people: People) -> Figure:
    """Draw precision against recall at every threshold, a line a batch, and each batch's prevalence."""
    figure, axes = plt.subplots()
    for number, (batch, (y, p)) in enumerate(people.items()):
        if y.any():
            precision, recall, _ = precision_recall_curve(y, p)
            axes.plot(recall, precision, label=batch, color=COLOURS[number % len(COLOURS)])
            axes.axhline(y.mean(), color=COLOURS[number % len(COLOURS)], linestyle=":", linewidth=1)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision; dotted: prevalence", ylim=(0, 1.02))
    axes.legend(loc="lower left")
    return figure


def calibration(people: People) -> Figure:
    """Draw what share fell ill against the probability predicted, in tenths of the people, and where people are."""
    figure, (axes, below) = plt.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    for batch, (y, p) in people.items():
        groups = np.array_split(np.argsort(p, kind="stable"), min(10, max(2, len(y) // 25)))
        axes.plot([p[g].mean() for g in groups], [y[g].mean() for g in groups], marker="o", markersize=4, label=batch)
        below.hist(p, bins=np.linspace(0, 1, 21), histtype="step")
    axes.set(ylabel="share with disease", ylim=(-0.03, 1.03))
    axes.legend(loc="upper left")
    below.set(xlabel="predicted probability of disease", ylabel="people")
    return figure


def confusion(people: People) -> Figure:
    """Draw how many were classified how at 0.5, a square a batch."""
    columns = min(len(people), 2)
    rows = -(-len(people) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5.2, 2.4 * rows), squeeze=False)
    for axes in grid.flat[len(people) :]:
        axes.set_axis_off()
    for axes, (batch, (y, p)) in zip(grid.flat, people.items(), strict=False):
        counts = confusion_matrix(y, p >= 0.5, labels=[0, 1])
        axes.imshow(counts / max(1, len(y)), cmap="Blues", vmin=0, vmax=1, alpha=0.55)
        for (i, j), count in np.ndenumerate(counts):
            axes.text(j, i, str(count), ha="center", va="center", fontsize=12, fontweight="bold")
        axes.set(title=batch, xticks=(0, 1), yticks=(0, 1), xticklabels=("none", "disease"), yticklabels=("none", "disease"))
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
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
