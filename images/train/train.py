"""train: learn who has heart disease from the diagnosed people of the training batches, and register the best model.

Reads   `heart_analysis.heart_sample` and `load_batch` in PostgreSQL: people with a diagnosis, and where they came from.
Writes  to MLflow: one run, a child run for each candidate, the chosen model as a new version of `heart-disease`;
        `out_of_fold.csv`: for each candidate and person the probability from a model that had not seen that person.
Promise candidates are tuned inside each fold (nested, repeated, stratified cross-validation), by log-loss; folds depend on
        nothing but the account ids and the seed, so the same data, seed and image give the same model.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services import MLFLOW, MODEL_NAME, POSTGRES, mlflow_client, read_frame, warehouse
from stage import File, InputRefused, Job, Rows, command, log

if TYPE_CHECKING:
    import mlflow
    import numpy as np
    import pandas as pd

FOLDS, INNER_FOLDS = 5, 5
# The same for the choice of what stands for missing features, where more would say no more.
STRATEGY_REPEATS = 3
# So many sets of features are taken away from the people of a fold, one set after the other.
MASKS = 10
# With more people, methods that take time by their square, or keep them, are left out, and cross-validation is repeated until
# so many judgements are made: the differences between candidates are clear by then.
MANY, JUDGEMENTS = 1000, 5000
BASELINE = "always the prevalence"
PEOPLE = """
SELECT account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, batch, drawn_from
FROM heart_analysis.heart_sample WHERE target IS NOT NULL ORDER BY account_id COLLATE "C"
"""
LOADS = (
    "SELECT DISTINCT ON (batch) batch, load_id, content_hash, source FROM heart_analysis.load_batch ORDER BY batch, load_id DESC"
)
# With fewer people of either kind a fold can't be trusted to hold both.
FEWEST_OF_A_CLASS = 20


@command("Train candidates on the diagnosed people, compare them honestly, and register the best in MLflow.",
         per_batch=False, environment=POSTGRES | MLFLOW)  # fmt: skip
@click.option("--training-batch", envvar="HEART_TRAINING_BATCH", show_envvar=True, multiple=True,
              help="Batch to train on; may be given again. Default: the one with the most diagnosed people.")  # fmt: skip
@click.option("--seed", envvar="HEART_SEED", show_envvar=True, default=1989, show_default=True,
              help="Fixes the folds and the models.")  # fmt: skip
@click.option("--repeats", envvar="HEART_REPEATS", show_envvar=True, default=10, show_default=True, type=click.IntRange(1, 100),
              help="How often cross-validation is repeated with other folds; fewer where people are many.")  # fmt: skip
def train(job: Job, training_batch: tuple[str, ...], seed: int, repeats: int) -> None:
    """Run the stage: see the module's docstring."""
    from estimators import one_blas_thread
    from features import FEATURES

    people, loads = read_people()
    batches = list(training_batch) or [largest_batch(people)]
    people = select_people(people, batches)
    digest = hashlib.sha256(people.drop(columns="drawn_from").to_csv(index=False).encode()).hexdigest()
    job.inputs = [File("heart_analysis.heart_sample", digest, len(people))]
    fingerprint = hashlib.sha256("/".join([digest, job.image, str(seed), str(repeats), *batches]).encode()).hexdigest()
    rows = Rows(in_=len(people), out=len(people))
    drawn_from, diseased = all_people(people), int(people["target"].sum())
    log.info("read", extra={"people": len(people), "drawn_from": drawn_from, "batches": batches, "diseased": diseased})

    with mlflow_client() as client, one_blas_thread():
        found = client.search_model_versions(f"name = '{MODEL_NAME}' AND tags.fingerprint = '{fingerprint}'")
        if found and not job.force:
            newest = max(found, key=lambda version: int(version.version))
            metrics = registered(client, int(newest.version), newest.run_id)
            job.nothing_to_do(f"version {newest.version} was trained on the same data", rows, metrics)

        fewer = min(repeats, max(1, JUDGEMENTS // len(people)))
        folds = make_folds(people, repeats if len(people) <= MANY else fewer, seed)
        X, y = people[list(FEATURES)], people["target"]
        strategies = judge_strategies(X, y, folds[:, :STRATEGY_REPEATS], seed)
        strategy = min(strategies, key=lambda name: strategies[name]["masked_log_loss"])
        log.info("missing features: %s", strategy, extra={"strategies": strategies})
        judged = judge(candidates(strategy, seed, len(people)), X, y, folds)
        best = choose(judged)
        model = fit_chosen(best, candidates(strategy, seed, len(people)), X, y)
        log.info("chose %s", best)

        with job.output_folder() as folder:
            path = folder / "out_of_fold.csv"
            count = write_out_of_fold(path, people, judged)
            lineage = [load for load in loads if load["batch"] in batches]
            parameters = {"seed": seed, "training_batches": ",".join(batches), "people": len(people), "drawn_from": drawn_from,
                          "chosen": best, "missing_features": strategy, "repeats": folds.shape[1], "folds": FOLDS,
                          "inner_folds": INNER_FOLDS, "newest_load": max(load["load_id"] for load in loads)}  # fmt: skip
            tags = {
                "fingerprint": fingerprint,
                "records": digest,
                "training_batches": ",".join(batches),
                "newest_load": str(parameters["newest_load"]),
                "heart.run": job.run,
                "heart.image": job.image,
                "heart.chosen": best,
                "mlflow.source.git.commit": job.revision,
            }
            run_id, version = register(model, people, judged, strategies, lineage, path, parameters, tags, digest)
            client.set_registered_model_alias(MODEL_NAME, "challenger", str(version))
            # A constant answer has no calibration slope.
            scores = {
                name: {k: result[k] if math.isfinite(result[k]) else None for k in SCORES} for name, result in judged.items()
            }
            metrics = registered(client, version, run_id) | {"chosen": best, "missing_features": strategy, "candidates": scores}
            job.commit(rows, folder=folder, outputs={path.name: count}, metrics=metrics)


def registered(client: "mlflow.MlflowClient", version: int, run_id: str) -> dict[str, Any]:
    """Return where a model version is found: its number, and the run and the experiment that it came from."""
    experiment_id = client.get_run(run_id).info.experiment_id
    return {"model_name": MODEL_NAME, "model_version": version, "mlflow_run_id": run_id, "mlflow_experiment_id": experiment_id}


def read_people() -> tuple["pd.DataFrame", list[dict[str, Any]]]:
    """Return everyone with a diagnosis, by account_id, and each batch's newest load with its delivered files.

    The frame has account_id, 13 features (float64), target (int64), batch, and drawn_from: how many people with a diagnosis the
    batch has, of whom these are a sample or all. Raises InputRefused where nobody has a diagnosis.
    """
    from features import FEATURES

    with warehouse("train") as connection, connection.cursor() as cursor:
        people = read_frame(cursor, PEOPLE)
        cursor.execute(LOADS)
        names = [column.name for column in cursor.description or ()]
        loads = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    if people.empty:
        raise InputRefused("heart_analysis.heart_fact: nobody has a diagnosis; load a batch with targets first")
    return people.astype(dict.fromkeys(FEATURES, "float64")), loads


def largest_batch(people: "pd.DataFrame") -> str:
    """Return the batch with the most people; the first by name where several have as many."""
    counts = people.groupby("batch")["drawn_from"].first()
    return min(counts[counts == counts.max()].index)


def all_people(people: "pd.DataFrame") -> int:
    """Return how many people there are in the batches that a sample was drawn from."""
    return int(people.groupby("batch")["drawn_from"].first().sum())


def select_people(people: "pd.DataFrame", batches: list[str]) -> "pd.DataFrame":
    """Return the people of the training batches. Raises InputRefused where they don't suffice to train and test on."""
    there = set(people["batch"])
    if absent := sorted(set(batches) - there):
        raise InputRefused(
            f"training batch {', '.join(absent)}: no batch of that name has diagnosed people; there are "
            f"{', '.join(sorted(there))}; several are separated by spaces"
        )
    chosen = people[people["batch"].isin(batches)].reset_index(drop=True)
    diseased = int(chosen["target"].sum())
    if min(diseased, len(chosen) - diseased) < FEWEST_OF_A_CLASS:
        raise InputRefused(
            f"training batch {', '.join(batches)}: {diseased} people with disease and {len(chosen) - diseased} without; "
            f"at least {FEWEST_OF_A_CLASS} of each are needed (of a large batch, among those drawn); name more with "
            "--training-batch (make run: TRAINING_BATCH=)"
        )
    return chosen


def hashes(people: "pd.DataFrame", *salt: object) -> list[bytes]:
    """Return what orders people as if by chance, whatever order they come in: a hash of salt and account_id."""
    before = "/".join(map(str, salt))
    return [hashlib.sha256(f"{before}/{account}".encode()).digest() for account in people["account_id"]]


def make_folds(people: "pd.DataFrame", repeats: int, seed: int) -> "np.ndarray":
    """Return each person's fold in each repeat: an int array of shape (people, repeats), values 0 to FOLDS - 1.

    Stratified by target; the order within a class is that of a hash of seed, repeat and account_id, so that it depends
    neither on the order of the rows nor on chance.
    """
    import numpy as np

    folds = np.empty((len(people), repeats), dtype=int)
    for repeat in range(repeats):
        order = hashes(people, seed, repeat)
        for target in (0, 1):
            members = np.flatnonzero(people["target"] == target)
            ranked = sorted(members, key=lambda i: order[i])
            folds[ranked, repeat] = np.arange(len(ranked)) % FOLDS
    return folds


def logistic(C: float = 0.3) -> Any:
    """Return a logistic regression of the strength that suits a few hundred people; candidates tune it."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, solver="newton-cholesky")


def with_missing(strategy: str, classifier: Any) -> Any:
    """Return a model for any pattern of missing features from a classifier that knows of none."""
    from sklearn.impute import KNNImputer, SimpleImputer
    from sklearn.pipeline import Pipeline

    from estimators import ConditionalMeanImputer, DesignMatrix, PatternSubmodels

    if strategy == "a submodel for each set of known features":
        return Pipeline([("design", DesignMatrix()), ("classifier", PatternSubmodels(classifier))])
    imputer = {
        "the mean given what is known": ConditionalMeanImputer(),
        "the nearest neighbours' mean": KNNImputer(n_neighbors=15, keep_empty_features=True),
        "the median": SimpleImputer(strategy="median", keep_empty_features=True),
    }[strategy]
    return Pipeline([("design", DesignMatrix()), ("missing", imputer), ("classifier", classifier)])


# These look at everyone that they were trained on whenever they are asked.
KEEP_PEOPLE = ("the nearest neighbours' mean", "a submodel for each set of known features")
STRATEGIES = ("the median", *KEEP_PEOPLE, "the mean given what is known")


def judge_strategies(X: "pd.DataFrame", y: "pd.Series", folds: "np.ndarray", seed: int) -> dict[str, dict[str, float]]:
    """Compare what may stand for missing features, on the training batches alone: masked cross-validation.

    From people held out, random sets of features are taken away; a logistic regression of fixed strength is judged on them.
    Returns {strategy: {log_loss, masked_log_loss}}, the first on the people as they are.
    """
    import numpy as np

    from estimators import mask
    from scores import log_losses

    result: dict[str, dict[str, float]] = {}
    target = y.to_numpy()
    for strategy in (name for name in STRATEGIES if len(X) <= MANY or name not in KEEP_PEOPLE):
        random = np.random.default_rng(seed)  # the same features are taken away for each
        losses: dict[str, list[float]] = {"log_loss": [], "masked_log_loss": []}
        for repeat in range(folds.shape[1]):
            for fold in range(FOLDS):
                held_out = folds[:, repeat] == fold
                model = with_missing(strategy, logistic()).fit(X[~held_out], target[~held_out])
                away = np.isnan(mask(np.zeros((MASKS, X.shape[1])), random))
                for missing in (np.zeros(X.shape[1], bool), *away):
                    p = model.predict_proba(X[held_out].mask(np.tile(missing, (held_out.sum(), 1))))[:, 1]
                    name = "masked_log_loss" if missing.any() else "log_loss"
                    losses[name].append(float(log_losses(target[held_out], p).mean()))
        result[strategy] = {name: float(np.mean(values)) for name, values in losses.items()}
    return result


SCORES = ("log_loss", "auc", "brier", "accuracy", "calibration_slope")


def candidates(strategy: str, seed: int, people: int) -> dict[str, Any]:
    """Return the estimators to compare, simplest first: {name: estimator that tunes itself by log-loss in inner folds}.

    The vote, which `judge` and `fit_chosen` add, is the mean of all but the first. A support vector machine takes time by the
    square of the people: with more than MANY people there is none.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    from estimators import MaskAugmented, TunedLogisticRegression

    logistic = TunedLogisticRegression(folds=INNER_FOLDS, random_state=seed)
    # Platt's probabilities: a logistic regression on the distance from the border, each seen from outside.
    machine = CalibratedClassifierCV(SVC(gamma=0.03), method="sigmoid", ensemble=False, cv=3)
    tuned_machine = GridSearchCV(machine, {"estimator__C": [0.5, 2.0]}, scoring="neg_log_loss", cv=3)
    forest = RandomForestClassifier(n_estimators=40, min_samples_leaf=3, max_features=3, random_state=seed)
    copies = 8
    boosting = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, max_leaf_nodes=6, l2_regularization=1,
                                              min_samples_leaf=20 * (copies + 1), random_state=seed)  # fmt: skip
    found = {
        BASELINE: DummyClassifier(strategy="prior"),
        "logistic regression": with_missing(strategy, logistic),
        "support vector machine": with_missing(strategy, tuned_machine),
        "random forest": with_missing(strategy, forest),
        "gradient boosting": MaskAugmented(boosting, copies, seed),
    }
    if people > MANY:
        del found["support vector machine"]
    return found


def fit_chosen(name: str, found: dict[str, Any], X: "pd.DataFrame", y: "pd.Series") -> Any:
    """Return the chosen candidate, tuned and fitted on everybody."""
    from sklearn.base import clone
    from sklearn.ensemble import VotingClassifier

    if name != "vote":
        return clone(found[name]).fit(X, y)
    return VotingClassifier([(member, found[member]) for member in found if member != BASELINE], voting="soft").fit(X, y)


def judge(found: dict[str, Any], X: "pd.DataFrame", y: "pd.Series", folds: "np.ndarray") -> dict[str, dict[str, Any]]:
    """Judge every candidate, and the vote of all but the first, by nested cross-validation: see `judged`."""
    import numpy as np
    from sklearn.base import clone

    result = {}
    for name, estimator in found.items():
        probability = np.empty(folds.shape)
        for repeat in range(folds.shape[1]):
            for fold in range(FOLDS):
                held_out = folds[:, repeat] == fold
                model = clone(estimator).fit(X[~held_out], y[~held_out])
                probability[held_out, repeat] = model.predict_proba(X[held_out])[:, 1]
        result[name] = judged(y.to_numpy(), probability, folds)
        log.info("judged %s", name, extra={score: result[name][score] for score in SCORES})
    members = [result[name]["probability"] for name in result if name != BASELINE]
    if len(members) > 1:
        result["vote"] = judged(y.to_numpy(), np.mean(members, axis=0), folds)
    return result


def judged(y: "np.ndarray", probability: "np.ndarray", folds: "np.ndarray") -> dict[str, Any]:
    """Return a candidate's scores: the mean over the outer folds (the calibration slope's: over the repeats).

    probability, folds: shape (people, repeats). Returns the scores of SCORES, `by_fold` (the same for each fold, in the order
    of repeats; without the slope), `probability` and `fold`.
    """
    import numpy as np

    from scores import scores

    by_fold = []
    for repeat in range(folds.shape[1]):
        for fold in range(FOLDS):
            held_out = folds[:, repeat] == fold
            found = scores(y[held_out], probability[held_out, repeat][:, None])
            by_fold.append({name: found[name] for name in SCORES[:-1]})
    means = {name: float(np.mean([fold[name] for fold in by_fold])) for name in SCORES[:-1]}
    return {
        **means,
        "calibration_slope": scores(y, probability)["calibration_slope"],
        "by_fold": by_fold,
        "probability": probability,
        "fold": folds,
    }


def choose(judged: dict[str, dict[str, Any]]) -> str:
    """Return the simplest candidate that is not worse beyond chance than the one with the lowest log-loss.

    By the corrected resampled t-test over the folds, one-sided, at 5 %.
    """
    from scores import SIGNIFICANCE, nadeau_bengio

    best = min(judged, key=lambda name: judged[name]["log_loss"])
    for name, result in judged.items():
        ours, theirs = ([scores["log_loss"] for scores in r["by_fold"]] for r in (judged[best], result))
        if name == best or (name != BASELINE and nadeau_bengio(ours, theirs, FOLDS) >= SIGNIFICANCE):
            return name
    raise AssertionError("the best is among them")


def write_out_of_fold(path: Path, people: "pd.DataFrame", judged: dict[str, dict[str, Any]]) -> int:
    """Write candidate, repeat, fold, account_id, batch, target and probability; return the number of rows."""
    import pandas as pd

    parts = [
        people[["account_id", "batch", "target"]].assign(
            candidate=name, repeat=repeat, fold=result["fold"][:, repeat], probability=result["probability"][:, repeat]
        )
        for name, result in judged.items()
        for repeat in range(result["fold"].shape[1])
    ]
    table = pd.concat(parts)
    table.to_csv(path, index=False, float_format="%.9g")
    return len(table)


def register(
    model: Any,
    people: "pd.DataFrame",
    judged: dict[str, dict[str, Any]],
    strategies: dict[str, dict[str, float]],
    lineage: list[dict[str, Any]],
    out_of_fold: Path,
    parameters: dict[str, Any],
    tags: dict[str, str],
    digest: str,
) -> tuple[str, int]:
    """Log the run with its candidates and register the model; return the run's id and the model's version."""
    import importlib.metadata
    import platform

    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import Metric

    from estimators import TRUSTED
    from features import FEATURES

    X = people[list(FEATURES)]
    dataset = mlflow.data.from_pandas(
        people.drop(columns=["account_id", "drawn_from"]).astype({"target": "float64"}),
        source=CodeDatasetSource(tags={"mlflow.source.name": "heart_analysis.heart_sample", "loads": json.dumps(lineage)}),
        targets="target",
        name=parameters["training_batches"][:200],
        digest=digest[:32],
    )
    names = ("mlflow-skinny", "numpy", "pandas", "scikit-learn", "skops")
    versions = {name: importlib.metadata.version(name) for name in names}
    with mlflow.start_run(run_name=f"train {tags['heart.run']}", tags=tags) as run:
        client = mlflow.MlflowClient()
        mlflow.log_params(parameters | {"python": platform.python_version()} | versions)
        mlflow.log_input(dataset, context="training")
        mlflow.log_artifact(str(out_of_fold))
        mlflow.log_dict({"batches": lineage, "records": digest}, "lineage.json")
        mlflow.log_dict(strategies, "missing_features.json")
        for name, result in judged.items():
            with mlflow.start_run(run_name=name, nested=True) as child:
                steps = [Metric(f"fold_{score}", value, run.info.start_time, step)
                         for step, scores in enumerate(result["by_fold"]) for score, value in scores.items()]  # fmt: skip
                totals = [Metric(score, result[score], run.info.start_time, 0) for score in SCORES]
                client.log_batch(child.info.run_id, metrics=[m for m in steps + totals if m.value == m.value])
        best = judged[parameters["chosen"]]
        mlflow.log_metrics({f"cv_{score}": best[score] for score in SCORES})
        mlflow.log_params({f"tuned.{k}": v for k, v in tuned(model).items()})
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            serialization_format="skops",
            skops_trusted_types=list(TRUSTED),
            signature=signature_of(model, X),
            input_example=X.head(),
            pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
            pyfunc_predict_fn="predict_proba",
            registered_model_name=MODEL_NAME,
        )
        version = int(info.registered_model_version)
        for key, value in tags.items():
            client.set_model_version_tag(MODEL_NAME, str(version), key, value)
        return run.info.run_id, version


def signature_of(model: Any, X: "pd.DataFrame") -> Any:
    """Return the model's signature: age and sex must be known, everything else may be left out."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, Schema

    columns = [ColSpec("double", name, required=name in ("age", "sex")) for name in X.columns]
    return ModelSignature(Schema(columns), infer_signature(X, model.predict_proba(X.head())).outputs)


def tuned(model: Any) -> dict[str, Any]:
    """Return a model's settings that are numbers or words, without those of its parts that say nothing."""
    return {k: v for k, v in model.get_params().items() if isinstance(v, int | float | str) and not isinstance(v, bool)}


if __name__ == "__main__":
    train()
