"""Whether the people of a batch are unlike those that a model was trained on, feature by feature.

A feature has drifted where two things agree: a test says that it is no chance (p below 0.05 divided by the number of
tests), and the population stability index says that it matters (above 0.2). Either alone raises false alarms: among random
halves of 303 people an index above 0.1 is the rule. A batch has drifted where at least three features have.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from features import CODES, FEATURES

BINS = 10
LEAST_INDEX = 0.2
SIGNIFICANCE = 0.05
LEAST_FEATURES = 3
# Fewer people than this show drift only where it is enormous.
FEWEST_PEOPLE = 25
# An empty bin counts as this share of a person, so that the index stays finite.
EMPTY = 0.5


@dataclass(frozen=True)
class Drift:
    """How unlike one feature is: the index, the p-value, and whether both say that it has drifted."""

    feature: str
    index: float
    p_value: float
    drifted: bool


def measure(reference: pd.DataFrame, batch: pd.DataFrame) -> list[Drift]:
    """Compare each of the 13 features (float64, NaN where not known) of a batch with those of the people trained on."""
    return [_compare(name, reference[name].to_numpy(), batch[name].to_numpy()) for name in FEATURES]


def has_drifted(found: list[Drift]) -> bool:
    """Return whether so many features drifted that the batch as a whole has."""
    return sum(drift.drifted for drift in found) >= LEAST_FEATURES


def _compare(name: str, reference: np.ndarray, batch: np.ndarray) -> Drift:
    counts = np.array([_binned(name, reference, values) for values in (reference, batch)])
    index = _stability_index(*counts)
    if name in CODES:
        p_value = _same_shares(counts)
    else:
        # What is known may have moved, or how often it is known: two tests.
        known = [values[~np.isnan(values)] for values in (reference, batch)]
        moved = stats.ks_2samp(*known).pvalue if all(map(len, known)) else 1.0
        missing = np.array([[np.isnan(values).sum(), (~np.isnan(values)).sum()] for values in (reference, batch)])
        p_value = min(1.0, 2 * min(moved, _same_shares(missing)))
    return Drift(name, index, float(p_value), bool(p_value < SIGNIFICANCE / len(FEATURES) and index > LEAST_INDEX))


def _binned(name: str, reference: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return how many people are in each bin: a code each, or tenths of the reference; the last bin is 'not known'."""
    known = values[~np.isnan(values)]
    if name in CODES:
        bins = [(known == code).sum() for code in CODES[name]]
    else:
        there = reference[~np.isnan(reference)]
        inner = np.unique(np.quantile(there, np.linspace(0, 1, BINS + 1)[1:-1])) if len(there) else np.array([])
        bins = list(np.bincount(np.searchsorted(inner, known, side="right"), minlength=len(inner) + 1))
    return np.array([*bins, np.isnan(values).sum()], dtype="float64")


def _stability_index(reference: np.ndarray, batch: np.ndarray) -> float:
    """Return the population stability index: the sum over bins of difference of shares times log ratio of shares."""
    used = (reference + batch) > 0
    shares = [np.maximum(counts[used], EMPTY) / counts.sum() for counts in (reference, batch)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def _same_shares(counts: np.ndarray) -> float:
    """Return the p-value of Pearson's test that two groups fall into bins alike; 1 where there is but one bin."""
    counts = counts[:, counts.sum(axis=0) > 0]
    return 1.0 if counts.shape[1] < 2 else float(stats.chi2_contingency(counts, correction=False).pvalue)
