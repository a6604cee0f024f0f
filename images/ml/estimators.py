"""What every model here is made of: 13 features, how they become numbers, and what stands for those that are not known.

All estimators follow scikit-learn's conventions. X is always a frame, or an array, of the 13 FEATURES in their order,
float64, NaN where a feature is not known: shape (people, 13). A frame may leave columns out.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from features import CODES, FEATURES, QUANTITIES

# What reading a stored model may bring to life, beside scikit-learn's public classes.
TRUSTED = (
    "estimators.ConditionalMeanImputer",
    "estimators.DesignMatrix",
    "estimators.MaskAugmented",
    "estimators.PatternSubmodels",
    "estimators.TunedLogisticRegression",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._classification.log_loss",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
)


def one_blas_thread() -> Any:
    """Give a context in which linear algebra takes one thread: on a few hundred people more only wait for each other."""
    return threadpool_limits(1, user_api="blas")


def all_features(X: Any) -> Any:
    """Return a frame with all 13 columns, in their order: one that is not there is not known. An array is left as it is."""
    return X.reindex(columns=list(FEATURES)) if hasattr(X, "columns") else X


def check(X: np.ndarray) -> None:
    """Raise ValueError that names the first feature with a value that it can't have."""
    for column, name in zip(X.T, FEATURES, strict=True):
        known = column[~np.isnan(column)]
        if name in CODES:
            wrong, allowed = known[~np.isin(known, CODES[name])], f"one of {', '.join(map(str, CODES[name]))}"
        else:
            low, high = QUANTITIES[name]
            wrong, allowed = known[(known < low) | (known > high)], f"between {low} and {high}"
        if len(wrong):
            raise ValueError(f"{name}: {wrong[0]:g} is not {allowed}; leave it out where it is not known")


class DesignMatrix(TransformerMixin, BaseEstimator):
    """Turn the features into columns around 0: quantities standardised, codes one-hot (yes/no: one column).

    A feature that is not known is NaN in each of its columns. `feature_of_` gives the index of each column's feature, `known_`
    the share of people in whom each feature was known.
    """

    def fit(self, X: Any, y: Any = None) -> "DesignMatrix":
        """Learn means and standard deviations; both are those of the people in whom a feature is known."""
        X = validate_data(self, all_features(X), dtype="float64", ensure_all_finite="allow-nan")
        columns, self.feature_of_ = self._columns(X)
        known = ~np.isnan(columns)
        count = np.maximum(known.sum(axis=0), 1)
        self.mean_ = np.where(known, columns, 0).sum(axis=0) / count
        deviation = np.sqrt((np.where(known, columns - self.mean_, 0) ** 2).sum(axis=0) / count)
        quantity = np.array([FEATURES[i] in QUANTITIES for i in self.feature_of_])
        self.known_ = (~np.isnan(X)).mean(axis=0)
        self.scale_ = np.where(quantity & (deviation > 0), deviation, 1.0)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the columns: float64, shape (people, columns). Raises ValueError where a value can't be."""
        check_is_fitted(self)
        X = validate_data(self, all_features(X), dtype="float64", ensure_all_finite="allow-nan", reset=False)
        check(X)
        return (self._columns(X)[0] - self.mean_) / self.scale_

    @staticmethod
    def _columns(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        columns, feature_of = [], []
        for i, name in enumerate(FEATURES):
            codes = CODES.get(name, ())
            one_hot = [np.where(np.isnan(X[:, i]), np.nan, X[:, i] == code) for code in codes] if len(codes) > 2 else [X[:, i]]
            columns += one_hot
            feature_of += [i] * len(one_hot)
        return np.column_stack(columns), np.array(feature_of)


class ConditionalMeanImputer(TransformerMixin, BaseEstimator):
    """Fill in what is not known with its mean given what is known, as if all columns were jointly normal.

    Mean and covariance are those of greatest likelihood (Dempster, Laird and Rubin, J. R. Statist. Soc. B 39 (1977) 1);
    `shrinkage` adds to the diagonal where one is regressed on others, so that columns which sum to one are no obstacle.
    """

    def __init__(self, shrinkage: float = 0.1, max_iter: int = 20) -> None:
        """Keep the settings."""
        self.shrinkage = shrinkage
        self.max_iter = max_iter

    def fit(self, Z: Any, y: Any = None) -> "ConditionalMeanImputer":
        """Learn mean and covariance."""
        Z = validate_data(self, Z, dtype="float64", ensure_all_finite="allow-nan")
        self.mean_ = np.zeros(Z.shape[1])
        self.covariance_ = np.eye(Z.shape[1])
        for _ in range(self.max_iter):
            filled, unknown = self._fill(Z)
            mean = filled.mean(axis=0)
            covariance = ((filled - mean).T @ (filled - mean) + unknown) / len(Z)
            moved = np.abs(covariance - self.covariance_).max() + np.abs(mean - self.mean_).max()
            self.mean_, self.covariance_ = mean, covariance
            if moved < 1e-3:
                break
        return self

    def transform(self, Z: Any) -> np.ndarray:
        """Return the columns without gaps: float64, of the same shape."""
        check_is_fitted(self)
        return self._fill(validate_data(self, Z, dtype="float64", ensure_all_finite="allow-nan", reset=False))[0]

    def spread(self, Z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the standard deviation of each row's weighted sum that comes from what is not known: shape (people,)."""
        result = np.zeros(len(Z))
        for rows, missing in patterns(Z):
            _, rest = self._given(missing)
            result[rows] = np.sqrt(max(weights[missing] @ rest @ weights[missing], 0))
        return result

    def _fill(self, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Z without gaps, and the covariance that the filled in values lack, summed over the rows."""
        filled, unknown = Z.copy(), np.zeros_like(self.covariance_)
        for rows, missing in patterns(Z):
            regression, rest = self._given(missing)
            known = Z[np.ix_(rows, ~missing)] - self.mean_[~missing]
            filled[np.ix_(rows, missing)] = self.mean_[missing] + known @ regression.T
            unknown[np.ix_(missing, missing)] += len(rows) * rest
        return filled, unknown

    def _given(self, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the regression of missing columns on known ones, and the covariance that remains."""
        S = self.covariance_
        ridge = self.shrinkage * np.diag(np.maximum(np.diag(S), 1e-3))
        regression = np.linalg.solve((S + ridge)[np.ix_(~missing, ~missing)], S[np.ix_(~missing, missing)]).T
        return regression, S[np.ix_(missing, missing)] - regression @ S[np.ix_(~missing, missing)]


class TunedLogisticRegression(LogisticRegression):
    """Logistic regression with the strongest regularisation that is not worse than the best by more than one standard error.

    By log-loss in repeated cross-validation, over differences to the best within the same folds (the one-standard-error rule of
    Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984).
    """

    GRID = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)

    def __init__(self, C: float = 1.0, folds: int = 5, repeats: int = 2, random_state: int = 0, tune: bool = True) -> None:
        """Keep the settings; C is what fitting finds, or, where nothing is to be tuned, what it takes."""
        super().__init__(C=C, max_iter=1000, random_state=random_state)
        self.folds = folds
        self.repeats = repeats
        self.tune = tune

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "TunedLogisticRegression":
        """Find C, then fit with it."""
        if not self.tune:
            return super().fit(X, y, sample_weight)
        inner = RepeatedStratifiedKFold(n_splits=self.folds, n_repeats=self.repeats, random_state=self.random_state)
        path = LogisticRegressionCV(
            Cs=list(self.GRID),
            l1_ratios=(0,),
            cv=inner,
            scoring="neg_log_loss",
            solver="newton-cholesky",
            tol=1e-3,
            use_legacy_attributes=False,
        )
        scores = np.asarray(path.fit(X, y).scores_).reshape(self.folds * self.repeats, len(self.GRID))
        worse = scores[:, [scores.mean(axis=0).argmax()]] - scores
        error = worse.std(axis=0, ddof=1) / np.sqrt(len(worse))
        self.C = self.GRID[int(np.flatnonzero(worse.mean(axis=0) <= error)[0])]
        return super().fit(X, y, sample_weight)


# The models of each PatternSubmodels that is in memory, by the columns that they use.
_submodels: WeakKeyDictionary["PatternSubmodels", dict[bytes, Any]] = WeakKeyDictionary()


class PatternSubmodels(ClassifierMixin, BaseEstimator):
    """One model for each set of known features, fitted on the people in whom these are all known.

    Models are made when they are asked for; so what it was trained on stays with it. They are kept as long as it lives in
    memory, and are no part of what is stored.
    """

    FEWEST_OF_A_KIND = 15

    def __init__(self, classifier: Any) -> None:
        """Keep the model to be fitted again and again."""
        self.classifier = classifier

    def fit(self, Z: Any, y: Any) -> "PatternSubmodels":
        """Keep the people."""
        self.Z_ = validate_data(self, Z, dtype="float64", ensure_all_finite="allow-nan")
        self.y_ = np.asarray(y)
        self.classes_ = np.unique(self.y_)
        _submodels.pop(self, None)
        return self

    def predict_proba(self, Z: Any) -> np.ndarray:
        """Return the probabilities of both classes: shape (people, 2)."""
        check_is_fitted(self)
        Z = validate_data(self, Z, dtype="float64", ensure_all_finite="allow-nan", reset=False)
        result = np.empty((len(Z), 2))
        for rows, missing in patterns(Z, complete=True):
            used, model = self._model_for(~missing)
            prevalence = self.y_.mean()
            result[rows] = model.predict_proba(Z[np.ix_(rows, used)]) if model else (1 - prevalence, prevalence)
        return result

    def _model_for(self, known: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the model for a set of known columns and the columns that it uses; None where too few people are left.

        Columns that few of the people trained on have are given up, one after the other, until enough of both kinds have all.
        """
        used = known.copy()
        absent = np.isnan(self.Z_).sum(axis=0)
        while used.any():
            taught = ~np.isnan(self.Z_[:, used]).any(axis=1)
            if min((self.y_[taught] == kind).sum() for kind in self.classes_) >= self.FEWEST_OF_A_KIND:
                made = _submodels.setdefault(self, {})
                if used.tobytes() not in made:
                    made[used.tobytes()] = clone(self.classifier).fit(self.Z_[np.ix_(taught, used)], self.y_[taught])
                return used, made[used.tobytes()]
            used[np.flatnonzero(used)[absent[used].argmax()]] = False
        return used, None

    def predict(self, Z: Any) -> np.ndarray:
        """Return the more probable class: shape (people,)."""
        return self.classes_[self.predict_proba(Z).argmax(axis=1)]


class MaskAugmented(ClassifierMixin, BaseEstimator):
    """A model that takes NaN, taught what it means: beside each person also copies of which features were taken away."""

    def __init__(self, classifier: Any, copies: int = 8, random_state: int = 0) -> None:
        """Keep the settings."""
        self.classifier = classifier
        self.copies = copies
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "MaskAugmented":
        """Fit the model on people and copies."""
        X = validate_data(self, all_features(X), dtype="float64", ensure_all_finite="allow-nan")
        random = np.random.default_rng(self.random_state)
        everybody = np.vstack([X, *(mask(X, random) for _ in range(self.copies))])
        self.known_ = (~np.isnan(X)).mean(axis=0)
        # Boosted trees can't bin a column in which nothing is known.
        self.used_ = ~np.isnan(everybody).all(axis=0)
        self.classifier_ = clone(self.classifier).fit(everybody[:, self.used_], np.tile(y, self.copies + 1))
        self.classes_ = self.classifier_.classes_
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of both classes: shape (people, 2). Raises ValueError where a value can't be."""
        check_is_fitted(self)
        X = validate_data(self, all_features(X), dtype="float64", ensure_all_finite="allow-nan", reset=False)
        check(X)
        return self.classifier_.predict_proba(X[:, self.used_])

    def predict(self, X: Any) -> np.ndarray:
        """Return the more probable class: shape (people,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def mask(X: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a copy with features taken away at random: from a person none to half of them, but never age and sex."""
    rate = random.choice([0, 0.1, 0.2, 0.3, 0.4, 0.5], size=(len(X), 1))
    away = random.random(X.shape) < rate
    away[:, [FEATURES.index("age"), FEATURES.index("sex")]] = False
    return np.where(away, np.nan, X)


def patterns(Z: np.ndarray, complete: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give the rows that lack the same columns, and which these are, one pattern after the other; also none if `complete`."""
    missing = np.isnan(Z)
    numbers = missing @ (1 << np.arange(Z.shape[1], dtype="int64"))
    found, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=len(found)))
    for k, number in enumerate(found):
        if number or complete:
            yield order[ends[k - 1] if k else 0 : ends[k]], missing[first[k]]
