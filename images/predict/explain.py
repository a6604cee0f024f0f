"""Why a model gives a person a probability, and how sure it can be where features are not known.

X is a frame of the 13 features, float64, NaN where one is not known: shape (people, 13).
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from estimators import ConditionalMeanImputer, TunedLogisticRegression
from features import FEATURES

TOP = 3
ORDERS = 10
# A feature that was known in so many of the people trained on is expected to be known.
EXPECTED = 0.95


def contributions(model: Any, X: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """Return by how much each known feature moves a person's log-odds: shape (people, 13), NaN where it is not known.

    Of a linear model: its own terms, from the mean of the people trained on. Of any other: Shapley values by sampling, where a
    feature that is left out is one that is not known (Strumbelj and Kononenko, J. Mach. Learn. Res. 11 (2010) 1).
    """
    known = X.notna().to_numpy()
    if _is_linear(model):
        design, classifier = model.named_steps["design"], model.named_steps["classifier"]
        terms = model[:-1].transform(X) * classifier.coef_[0]
        result = np.stack([terms[:, design.feature_of_ == i].sum(axis=1) for i in range(len(FEATURES))], axis=1)
    else:
        random = np.random.default_rng(seed)
        result = np.zeros(X.shape)
        for _ in range(ORDERS):
            seen = X.copy()
            seen[:] = np.nan
            before = _log_odds(model, seen)
            for i in random.permutation(len(FEATURES)):
                seen.iloc[:, i] = X.iloc[:, i]
                after = _log_odds(model, seen)
                result[:, i] += (after - before) / ORDERS
                before = after
    return np.where(known, result, math.nan)


def top_factors(model: Any, X: pd.DataFrame) -> list[list[tuple[str, float, float]]]:
    """Return for each person the features that move the log-odds most, largest first: (feature, value, effect)."""
    found = contributions(model, X).round(3)
    order = np.argsort(-np.abs(found), axis=1)[:, :TOP]  # what is not known comes last
    names = np.array(FEATURES, dtype="object")[order]  # of objects: the few names are not copied again and again
    values, effects = (np.take_along_axis(table, order, axis=1) for table in (X.to_numpy(), found))
    factors = list(zip(names.ravel().tolist(), values.ravel().tolist(), effects.ravel().tolist(), strict=True))
    known = (~np.isnan(found)).sum(axis=1).clip(max=TOP).tolist()
    return [factors[TOP * person : TOP * person + n] for person, n in enumerate(known)]


def interval(model: Any, X: pd.DataFrame) -> np.ndarray:
    """Return between which probabilities the answer would lie in 95 % of cases, were the features known that are not.

    Shape (people, 2); both ends are the probability itself where everything is known, and NaN where the model is of a kind
    that cannot say. It does not tell how sure the model itself is.
    """
    if not _is_linear(model) or not isinstance(model.named_steps["missing"], ConditionalMeanImputer):
        return np.full((len(X), 2), math.nan)
    design, imputer, classifier = (model.named_steps[name] for name in ("design", "missing", "classifier"))
    Z = design.transform(X)
    middle = classifier.decision_function(imputer.transform(Z))
    spread = 1.96 * imputer.spread(Z, classifier.coef_[0])
    return special.expit(np.stack([middle - spread, middle + spread], axis=1))


def unexpectedly_unknown(model: Any, X: pd.DataFrame) -> np.ndarray:
    """Return which features are not known of a person that nearly all people trained on had: bool, shape (people, 13)."""
    first = getattr(model, "estimators_", [model])[0]  # a vote's members were trained on the same people
    expected = getattr(first, "named_steps", {}).get("design", first).known_ >= EXPECTED
    return X.isna().to_numpy() & expected


def names_of(marked: np.ndarray) -> list[list[str]]:
    """Return for each person the names of the features that are marked. marked: bool, shape (people, 13)."""
    _, first, which = np.unique(marked @ (1 << np.arange(len(FEATURES))), return_index=True, return_inverse=True)
    names = [[name for name, there in zip(FEATURES, row, strict=True) if there] for row in marked[first]]
    return [names[k] for k in which]


def _is_linear(model: Any) -> bool:
    steps = getattr(model, "named_steps", {})
    return isinstance(steps.get("classifier"), TunedLogisticRegression) and "missing" in steps


def _log_odds(model: Any, X: pd.DataFrame) -> np.ndarray:
    return special.logit(np.clip(model.predict_proba(X)[:, 1], 1e-6, 1 - 1e-6))
