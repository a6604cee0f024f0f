"""Where a model works and where it does not: by sex, age and hospital, and whether acting on it would do good."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from scores import log_losses, weighted

# With fewer people of either kind a slice's figures say little.
FEWEST_OF_A_KIND = 20
LEAST_SENSITIVITY = 0.7
SLICES = {
    "women": lambda people: people["sex"] == 0,
    "men": lambda people: people["sex"] == 1,
    "under 50 years": lambda people: people["age"] < 50,
    "50 to 59 years": lambda people: people["age"].between(50, 59),
    "60 years and over": lambda people: people["age"] >= 60,
}
THRESHOLDS = np.round(np.arange(0.05, 0.85, 0.05), 2)


def slices(people: pd.DataFrame, y: np.ndarray, p: np.ndarray) -> list[dict[str, Any]]:
    """Judge a model on parts of a group of people.

    people: age in years and sex; y, p: shape (people,). Returns for each slice its counts, ROC-AUC, sensitivity and false
    positive rate at 0.5 with their 95 % intervals (Wilson, J. Am. Statist. Assoc. 22 (1927) 209), and warnings in words.
    """
    found = []
    for name, belongs in SLICES.items():
        inside = belongs(people).to_numpy(dtype=bool)
        truth, chance = y[inside], p[inside]
        ill, well = int(truth.sum()), int((1 - truth).sum())
        sensitivity = _share(int(((chance >= 0.5) & (truth == 1)).sum()), ill)
        found.append({
            "name": name, "people": len(truth), "ill": ill,
            "auc": float(weighted(truth, chance, np.ones((1, len(truth))))["auc"][0]) if ill and well else None,
            "sensitivity": sensitivity,
            "false_positives": _share(int(((chance >= 0.5) & (truth == 0)).sum()), well),
            "warnings": _warnings(truth, chance, ill, well, sensitivity["value"]),
        })  # fmt: skip
    return found


def _warnings(truth: np.ndarray, chance: np.ndarray, ill: int, well: int, sensitivity: float | None) -> list[str]:
    warnings = []
    if min(ill, well) < FEWEST_OF_A_KIND:
        warnings.append(f"too few to tell: {ill} with disease, {well} without")
    if sensitivity is not None and sensitivity < LEAST_SENSITIVITY:
        warnings.append(f"misses {ill - round(sensitivity * ill)} of {ill} people with disease")
    if ill and well and log_losses(truth, chance).mean() > log_losses(truth, np.full(len(truth), truth.mean())).mean():
        warnings.append("its probabilities are worse than the slice's prevalence")
    return warnings


def _share(count: int, of: int) -> dict[str, float | None]:
    if not of:
        return {"value": None, "low": None, "high": None}
    interval = stats.binomtest(count, of).proportion_ci(method="wilson")
    return {"value": count / of, "low": float(interval.low), "high": float(interval.high)}


def net_benefit(y: np.ndarray, p: np.ndarray) -> dict[str, np.ndarray]:
    """Return what acting on the model is worth at each of THRESHOLDS, in true positives a person.

    A threshold t says that a false alarm weighs t / (1 - t) of a true positive. Compared with acting on everybody; acting on
    nobody is worth 0. Vickers and Elkin, Med. Decis. Making 26 (2006) 565.
    """
    odds = THRESHOLDS / (1 - THRESHOLDS)
    acted = p[:, None] >= THRESHOLDS
    model = (acted & (y == 1)[:, None]).mean(axis=0) - odds * (acted & (y == 0)[:, None]).mean(axis=0)
    return {"model": model, "everybody": y.mean() - odds * (1 - y.mean())}
