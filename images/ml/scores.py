"""How good probabilities are: the scores, their intervals, and the comparison of two models on the same people.

Throughout, y is an int array of shape (people,), 1 = disease, and p a float64 array of shape (people, repeats) with the
predicted probability of disease, once for each repeat of the cross-validation, or once at all. A score is the mean over the
repeats; one that needs both kinds of people is NaN where there is only one.
"""

import math
from typing import Any

import numpy as np
from scipy import special, stats

RESAMPLES = 500
SIGNIFICANCE = 0.05
# Probabilities are kept this far from 0 and 1, so that one sure and wrong answer doesn't make the log-loss infinite.
CLIP = 1e-6
# So many numbers are worked on at once, whatever the number of people.
BLOCK = 4_000_000
Score = dict[str, float | None]


def log_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return each person's log-loss, -ln of the probability that was given to what came true; y and p of one shape."""
    p = np.clip(p, CLIP, 1 - CLIP)
    return -np.log(np.where(y == 1, p, 1 - p))


def calibration_line(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slope and intercept of a logistic regression of y on logit p: 1 and 0 where p means what it says.

    p: shape (people,); weights: how often each person counts, shape (samples, people). Returns two arrays of shape (samples,).
    A slope below 1 tells of probabilities that are too extreme. Cox, Biometrika 45 (1958) 562.
    """
    logit = special.logit(np.clip(p, CLIP, 1 - CLIP))
    slope, intercept = np.ones(len(weights)), np.zeros(len(weights))
    if np.ptp(logit) < 1e-9:
        return slope * math.nan, intercept * math.nan
    for _ in range(30):  # Newton's method; a little ridge keeps samples that are separable finite
        fitted = special.expit(slope[:, None] * logit + intercept[:, None])
        residual, curvature = weights * (y - fitted), weights * fitted * (1 - fitted)
        g1, g0 = residual @ logit, residual.sum(axis=1)
        h11, h10, h00 = curvature @ logit**2 + 1e-9, curvature @ logit, curvature.sum(axis=1) + 1e-9
        determinant = h11 * h00 - h10**2
        step1 = np.clip((h00 * g1 - h10 * g0) / determinant, -1, 1)
        step0 = np.clip((h11 * g0 - h10 * g1) / determinant, -1, 1)
        slope, intercept = slope + step1, intercept + step0
        if max(np.abs(step1).max(), np.abs(step0).max()) < 1e-6:
            break
    ill = weights @ y
    both = (ill > 0) & (ill < weights.sum(axis=1))
    return np.where(both, slope, math.nan), np.where(both, intercept, math.nan)


def weighted(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return all scores of samples of the same people, each an array of shape (samples,).

    p: shape (people,); weights: how often each person counts in each sample, shape (samples, people). ROC-AUC counts ties half
    (Mann and Whitney, Ann. Math. Statist. 18 (1947) 50); PR-AUC is average precision.
    """
    total = weights.sum(axis=1)
    order = np.argsort(-p, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(p[order]) != 0])
    ranked = weights[:, order]
    ill = np.add.reduceat(ranked * y[order], starts, axis=1)  # by distinct probability, highest first
    well = np.add.reduceat(ranked * (1 - y[order]), starts, axis=1)
    found, false = ill.cumsum(axis=1), well.cumsum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = ((found - ill / 2) * well).sum(axis=1) / (found[:, -1] * false[:, -1])
        precision = np.where(found + false > 0, found / (found + false), 0)
        pr_auc = (ill * precision).sum(axis=1) / found[:, -1]
    slope, intercept = calibration_line(y, p, weights)
    return {
        "log_loss": weights @ log_losses(y, p) / total,
        "auc": auc,
        "pr_auc": np.where(false[:, -1] > 0, pr_auc, math.nan),
        "brier": weights @ (p - y) ** 2 / total,
        "accuracy": weights @ ((p >= 0.5) == y) / total,
        "calibration_slope": slope,
        "calibration_intercept": intercept,
    }


def scores(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """Return all scores of one set of people: log-loss, ROC-AUC, PR-AUC, Brier, accuracy at 0.5, calibration line."""
    once = np.ones((1, len(y)))
    each = [weighted(y, column, once) for column in p.T]
    return {name: float(np.mean([result[name][0] for result in each])) for name in each[0]}


def with_intervals(y: np.ndarray, p: np.ndarray, seed: int) -> dict[str, Score]:
    """Return each score with its 95 % interval: percentiles over resamples of the people, drawn with replacement.

    {score: {value, low, high}}; None stands where a score is not defined. Efron, Ann. Statist. 7 (1979) 1.
    """
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // len(y))
    drawn: dict[str, list[np.ndarray]] = {}
    for first in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - first)
        weights = random.multinomial(len(y), np.full(len(y), 1 / len(y)), size=size).astype("float64")
        each = [weighted(y, column, weights) for column in p.T]
        for name in each[0]:
            drawn.setdefault(name, []).append(np.mean([result[name] for result in each], axis=0))
    result: dict[str, Score] = {}
    for name, value in scores(y, p).items():
        sample = np.concatenate(drawn[name])
        sample = sample[np.isfinite(sample)]
        low, high = np.percentile(sample, [2.5, 97.5]) if len(sample) and math.isfinite(value) else (math.nan, math.nan)
        result[name] = {k: float(v) if math.isfinite(v) else None for k, v in (("value", value), ("low", low), ("high", high))}
    return result


def nadeau_bengio(ours: Any, theirs: Any, folds: int) -> float:
    """Return the one-sided p-value of the corrected resampled t-test that `ours` is lower than `theirs`, a loss for each fold.

    folds: how many make one repeat. 0.5 where all differences are the same. Nadeau and Bengio, Mach. Learn. 52 (2003) 239.
    """
    difference = np.asarray(ours) - np.asarray(theirs)
    variance = difference.var(ddof=1) if len(difference) > 1 else 0.0
    if variance <= 1e-20:
        return 0.5
    error = math.sqrt((1 / len(difference) + 1 / (folds - 1)) * variance)
    return float(stats.t.cdf(difference.mean() / error, len(difference) - 1))


def compare(ours: Any, theirs: Any, seed: int) -> dict[str, float] | None:
    """Compare two models on the people that both judged unseen, by log-loss; negative differences favour `ours`.

    ours, theirs: frames with account_id, repeat, fold, target, probability. Returns the mean difference, its 95 %
    interval (people resampled), the p-value of the corrected resampled t-test over the folds, and the number of people; None
    where no one is common to both.
    """
    both = ours.merge(theirs, on=["account_id", "repeat"], suffixes=("", "_theirs"))
    if both.empty:
        return None
    y = both["target"].to_numpy()
    both["ours"], both["theirs"] = (log_losses(y, both[name].to_numpy()) for name in ("probability", "probability_theirs"))
    both["difference"] = both["ours"] - both["theirs"]
    person = both.groupby("account_id")["difference"].mean().to_numpy()
    random = np.random.default_rng(seed)
    means = [person[random.integers(0, len(person), len(person))].mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    by_fold = both.groupby(["repeat", "fold"])[["ours", "theirs"]].mean()
    p_value = nadeau_bengio(by_fold["ours"], by_fold["theirs"], max(2, both["fold"].nunique()))
    return {"difference": float(person.mean()), "low": float(low), "high": float(high), "p_value": p_value, "people": len(person)}
