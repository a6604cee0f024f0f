"""train: learn who has heart disease from the diagnosed people of the training batches, and register the best model.

Reads   `heart_analysis.heart_feature` in PostgreSQL: people with a diagnosis.
Writes  to MLflow: one run, a child run for each candidate, the chosen model as a new version of `heart-disease`;
        `out_of_fold.csv`: for each candidate and person the probability from a model that had not seen that person.
Promise candidates are tuned inside each fold (nested cross-validation), by log-loss; folds depend on nothing but the
        account ids and the seed, so the same data, seed and image give the same model.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services import MLFLOW, MODEL_NAME, POSTGRES, mlflow_client, read_frame, warehouse
from stage import File, InputRefused, Job, Rows, command, log

if TYPE_CHECKING:
    import mlflow
    import numpy as np
    import pandas as pd

FEATURES = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal")
# Categories without an order. The other codes are yes/no, counts, or ordered.
NOMINAL = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "thal": (3, 6, 7)}
REPEATS, FOLDS, INNER_FOLDS = 2, 5, 3
PEOPLE = """
SELECT account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target, batch
FROM heart_analysis.heart_feature WHERE target IS NOT NULL ORDER BY account_id COLLATE "C"
"""
# With fewer people of either kind a fold can't be trusted to hold both.
FEWEST_OF_A_CLASS = 20


@command("Train candidates on the diagnosed people, compare them honestly, and register the best in MLflow.",
         per_batch=False, environment=POSTGRES | MLFLOW)  # fmt: skip
@click.option("--training-batch", envvar="HEART_TRAINING_BATCH", show_envvar=True, multiple=True,
              help="Batch to train on; may be given again. Default: the one with the most diagnosed people.")  # fmt: skip
@click.option("--seed", envvar="HEART_SEED", show_envvar=True, default=1989, show_default=True,
              help="Fixes the folds and the models.")  # fmt: skip
def train(job: Job, training_batch: tuple[str, ...], seed: int) -> None:
    """Run the stage: see the module's docstring."""
    people = read_people()
    batches = list(training_batch) or [largest_batch(people)]
    people = select_people(people, batches)
    digest = hashlib.sha256(people.to_csv(index=False).encode()).hexdigest()
    job.inputs = [File("heart_analysis.heart_feature", digest, len(people))]
    fingerprint = hashlib.sha256("/".join([digest, job.image, str(seed), *batches]).encode()).hexdigest()
    rows = Rows(in_=len(people), out=len(people))
    log.info("read", extra={"people": len(people), "batches": batches, "diseased": int(people["target"].sum())})

    with mlflow_client() as client:
        found = client.search_model_versions(f"name = '{MODEL_NAME}' AND tags.fingerprint = '{fingerprint}'")
        if found and not job.force:
            newest = max(found, key=lambda version: int(version.version))
            metrics = registered(client, int(newest.version), newest.run_id)
            job.nothing_to_do(f"version {newest.version} was trained on the same data", rows, metrics)

        X, y = people[list(FEATURES)], people["target"]
        folds = make_folds(people, seed)
        judged = {}
        for name, (estimator, grid) in candidates(seed).items():
            judged[name] = nested_cross_validation(estimator, grid, X, y, folds)
            log.info("judged %s", name, extra={"log_loss": judged[name]["log_loss"], "roc_auc": judged[name]["roc_auc"]})
        best = min(judged, key=lambda name: judged[name]["log_loss"])
        model = fit_tuned(*candidates(seed)[best], X, y)
        log.info("chose %s", best)

        with job.output_folder() as folder:
            path = folder / "out_of_fold.csv"
            count = write_out_of_fold(path, people, judged)
            parameters = {"seed": seed, "training_batches": ",".join(batches), "people": len(people), "chosen": best,
                          "repeats": REPEATS, "folds": FOLDS, "inner_folds": INNER_FOLDS}  # fmt: skip
            tags = {"fingerprint": fingerprint, "heart.run": job.run, "heart.image": job.image, "heart.chosen": best}
            run_id, version = register(model, people, judged, path, parameters, tags, digest)
            client.set_registered_model_alias(MODEL_NAME, "challenger", str(version))
            scores = {name: {k: result[k] for k in ("log_loss", "roc_auc")} for name, result in judged.items()}
            metrics = registered(client, version, run_id) | {"chosen": best, "candidates": scores}
            job.commit(rows, folder=folder, outputs={path.name: count}, metrics=metrics)


def registered(client: "mlflow.MlflowClient", version: int, run_id: str) -> dict[str, Any]:
    """Return where a model version is found: its number, and the run and the experiment that it came from."""
    experiment_id = client.get_run(run_id).info.experiment_id
    return {"model_name": MODEL_NAME, "model_version": version, "mlflow_run_id": run_id, "mlflow_experiment_id": experiment_id}


def read_people() -> "pd.DataFrame":
    """Return everyone with a diagnosis, by account_id: account_id, 13 features (float64), target (int64), batch.

    Raises InputRefused where nobody has a diagnosis.
    """
    with warehouse("train") as connection, connection.cursor() as cursor:
        people = read_frame(cursor, PEOPLE)
    if people.empty:
        raise InputRefused("heart_analysis.heart_fact: nobody has a diagnosis; load a batch with targets first")
    return people.astype(dict.fromkeys(FEATURES, "float64"))


def largest_batch(people: "pd.DataFrame") -> str:
    """Return the batch with the most people; the first by name where several have as many."""
    counts = people["batch"].value_counts()
    return min(counts[counts == counts.max()].index)


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
            f"at least {FEWEST_OF_A_CLASS} of each are needed; name more with --training-batch (make run: TRAINING_BATCH=)"
        )
    return chosen


def make_folds(people: "pd.DataFrame", seed: int) -> "np.ndarray":
    """Return each person's fold in each repeat: an int array of shape (people, REPEATS), values 0 to FOLDS - 1.

    Stratified by target; the order within a class is that of a hash of seed, repeat and account_id, so that it depends
    neither on the order of the rows nor on chance.
    """
    import numpy as np

    folds = np.empty((len(people), REPEATS), dtype=int)
    for repeat in range(REPEATS):
        order = [hashlib.sha256(f"{seed}/{repeat}/{a}".encode()).digest() for a in people["account_id"]]
        for target in (0, 1):
            members = np.flatnonzero(people["target"] == target)
            ranked = sorted(members, key=lambda i: order[i])
            folds[ranked, repeat] = np.arange(len(ranked)) % FOLDS
    return folds


def candidates(seed: int) -> dict[str, tuple[Any, dict[str, list[Any]]]]:
    """Return the estimators to compare, simplest first, each with the grid that it is tuned over.

    Missing values are filled in from the people most alike (k nearest neighbours), or, for boosted trees, are a value of
    their own; that way a model answers for any pattern of missing values.
    """
    from sklearn.compose import make_column_transformer
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import KNNImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def prepared(classifier: Any) -> Pipeline:
        numbers = make_pipeline(StandardScaler(), KNNImputer(n_neighbors=15, keep_empty_features=True))
        one_hot = OneHotEncoder(categories=[list(map(float, codes)) for codes in NOMINAL.values()], handle_unknown="ignore")
        columns = make_column_transformer((numbers, [f for f in FEATURES if f not in NOMINAL]), (one_hot, list(NOMINAL)))
        return Pipeline([("columns", columns), ("classifier", classifier)])

    forest = RandomForestClassifier(n_estimators=60, min_samples_leaf=5, random_state=seed)
    boosting = HistGradientBoostingClassifier(max_leaf_nodes=6, learning_rate=0.05, l2_regularization=1, random_state=seed)
    return {
        "always the prevalence": (Pipeline([("classifier", DummyClassifier(strategy="prior"))]), {}),
        "logistic regression": (
            prepared(LogisticRegression(max_iter=1000)),
            {"classifier__C": [0.03, 0.1, 0.3, 1.0]},
        ),
        "random forest": (prepared(forest), {}),
        "gradient boosting": (Pipeline([("classifier", boosting)]), {"classifier__max_iter": [30, 60]}),
    }


def fit_tuned(estimator: Any, grid: dict[str, list[Any]], X: "pd.DataFrame", y: "pd.Series") -> Any:
    """Return the estimator with the grid's best setting by log-loss in inner folds, fitted on all rows."""
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    if not grid:
        return clone(estimator).fit(X, y)
    return GridSearchCV(estimator, grid, scoring="neg_log_loss", cv=INNER_FOLDS).fit(X, y).best_estimator_


def nested_cross_validation(
    estimator: Any, grid: dict[str, list[Any]], X: "pd.DataFrame", y: "pd.Series", folds: "np.ndarray"
) -> dict[str, Any]:
    """Judge a candidate with its tuning on people that neither has seen.

    Returns the mean log-loss and ROC-AUC over all outer folds, the same by fold (`by_fold`), and each person's
    probability of disease by repeat (`probability`, float64, shape (people, repeats)).
    """
    import numpy as np
    from sklearn.metrics import log_loss, roc_auc_score

    probability = np.empty(folds.shape)
    by_fold = []
    for repeat in range(folds.shape[1]):
        for fold in range(FOLDS):
            held_out = folds[:, repeat] == fold
            model = fit_tuned(estimator, grid, X[~held_out], y[~held_out])
            p = model.predict_proba(X[held_out])[:, 1]
            probability[held_out, repeat] = p
            by_fold.append({"log_loss": float(log_loss(y[held_out], p)), "roc_auc": float(roc_auc_score(y[held_out], p))})
    means = {metric: float(np.mean([scores[metric] for scores in by_fold])) for metric in by_fold[0]}
    return {**means, "by_fold": by_fold, "probability": probability, "fold": folds}


def write_out_of_fold(path: Path, people: "pd.DataFrame", judged: dict[str, dict[str, Any]]) -> int:
    """Write candidate, repeat, fold, account_id, batch, target and probability; return the number of rows."""
    import pandas as pd

    parts = [
        people[["account_id", "batch", "target"]].assign(
            candidate=name, repeat=repeat, fold=result["fold"][:, repeat], probability=result["probability"][:, repeat]
        )
        for name, result in judged.items()
        for repeat in range(REPEATS)
    ]
    table = pd.concat(parts)
    table.to_csv(path, index=False, float_format="%.9g")
    return len(table)


def register(
    model: Any,
    people: "pd.DataFrame",
    judged: dict[str, dict[str, Any]],
    out_of_fold: Path,
    parameters: dict[str, Any],
    tags: dict[str, str],
    digest: str,
) -> tuple[str, int]:
    """Log the run with its candidates and register the model; return the run's id and the model's version."""
    import importlib.metadata

    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.models import infer_signature

    X = people[list(FEATURES)]
    dataset = mlflow.data.from_pandas(
        people.drop(columns="account_id").astype({"target": "float64"}),
        source=CodeDatasetSource(tags={"mlflow.source.name": "heart_analysis.heart_feature"}),
        targets="target",
        name=parameters["training_batches"],
        digest=digest[:32],
    )
    names = ("mlflow-skinny", "pandas", "scikit-learn", "skops")
    requirements = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    with mlflow.start_run(run_name=f"train {tags['heart.run']}", tags=tags) as run:
        mlflow.log_params(parameters)
        mlflow.log_input(dataset, context="training")
        mlflow.log_artifact(str(out_of_fold))
        for name, result in judged.items():
            with mlflow.start_run(run_name=name, nested=True):
                for step, scores in enumerate(result["by_fold"]):
                    mlflow.log_metrics({f"fold_{metric}": value for metric, value in scores.items()}, step=step)
                mlflow.log_metrics({metric: result[metric] for metric in ("log_loss", "roc_auc")})
        best = judged[parameters["chosen"]]
        mlflow.log_metrics({f"cv_{metric}": best[metric] for metric in ("log_loss", "roc_auc")})
        mlflow.log_params({f"tuned.{k}": v for k, v in model.named_steps["classifier"].get_params().items()})
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            serialization_format="skops",
            signature=infer_signature(X, model.predict_proba(X.head())[:, 1]),
            input_example=X.head(),
            pip_requirements=requirements,
            pyfunc_predict_fn="predict_proba",
            registered_model_name=MODEL_NAME,
        )
        version = int(info.registered_model_version)
        for key, value in tags.items():
            mlflow.MlflowClient().set_model_version_tag(MODEL_NAME, str(version), key, value)
        return run.info.run_id, version


if __name__ == "__main__":
    train()
