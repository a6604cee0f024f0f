"""evaluate: judge the newly trained model on people that it has not seen, and decide whether it becomes the champion.

Reads   what train said of its run; `heart_analysis.heart_feature` and `load_batch` in PostgreSQL; the model and its
        out-of-fold probabilities in MLflow.
Writes  `heart_analysis.model_evaluation` and `promotion`; scores, plots and report to the model's MLflow run; the aliases
        `champion` and `challenger`; `report.html` and the plots as files.
Promise people of the training batches are judged by models that had not seen them (out of fold), all others by the model
        itself; people who were in the training batches under another id are left out. Every decision is recorded.
"""

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services import MLFLOW, MODEL_NAME, POSTGRES, load_model, mlflow_client, read_frame, registered_version, warehouse
from stage import File, Job, Rows, command, log

if TYPE_CHECKING:
    import mlflow
    import numpy as np
    import pandas as pd
    from psycopg2.extensions import cursor as Cursor

    from gate import Decision

BASELINE = "always the prevalence"
PEOPLE = 'SELECT * FROM heart_analysis.heart_feature WHERE target IS NOT NULL ORDER BY account_id COLLATE "C"'
UNDIAGNOSED = "SELECT count(*) FROM heart_analysis.heart_feature WHERE target IS NULL"
LOADS = """
SELECT DISTINCT ON (batch) batch, dialect, source, rows_in, rows_loaded, rows_quarantined, rows_duplicate, loaded_at, load_id
FROM heart_analysis.load_batch ORDER BY batch, load_id DESC
"""
# With fewer people a batch's scores say next to nothing.
FEWEST_PEOPLE = 20
SHUFFLES = 5


@command("Judge the newly trained model on people it has not seen; promote it, keep the champion, or refuse it.",
         per_batch=False, environment=POSTGRES | MLFLOW)  # fmt: skip
@click.option("--seed", envvar="HEART_SEED", show_envvar=True, default=1989, show_default=True,
              help="Fixes the resampling behind the intervals.")  # fmt: skip
def evaluate(job: Job, seed: int) -> None:
    """Run the stage: see the module's docstring."""
    trained = job.result_of("train")["metrics"]
    version, run_id = trained["model_version"], trained["mlflow_run_id"]
    with warehouse("evaluate") as connection, connection.cursor() as cursor:
        people = read_frame(cursor, PEOPLE)
        cursor.execute(LOADS)
        names = [column.name for column in cursor.description or ()]
        loads = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        cursor.execute(UNDIAGNOSED)
        undiagnosed = cursor.fetchall()[0][0]
    digest = hashlib.sha256(people.to_csv(index=False).encode()).hexdigest()
    job.inputs = [File("heart_analysis.heart_feature", digest, len(people))]
    job.skip_if_unchanged(model_version=version, mlflow_run_id=run_id, seed=seed)

    with mlflow_client() as client, job.output_folder() as folder:
        model = load_model(version)
        judged = judge(model, people, read_out_of_fold(client, run_id))
        log.info("judged", extra={"model_version": version, "batches": {b: len(y) for b, (y, _) in judged["people"].items()}})
        from scores import with_intervals

        results = {batch: with_intervals(y, p, seed) for batch, (y, p) in judged["people"].items()}
        decision, champion = decide(client, version, judged, results, people, seed)
        log.info("%s: %s", decision.outcome, decision.reason)

        figures = draw(judged, model, people, seed)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        alias = "champion" if decision.outcome == "promoted" or champion == version else "challenger"
        summary = {
            "model_name": MODEL_NAME,
            "model_version": version,
            "mlflow_run_id": run_id,
            "mlflow_experiment_id": trained["mlflow_experiment_id"],
            "alias": alias,
            "decision": decision.outcome,
            "reason": decision.reason,
            "champion_version": version if alias == "champion" else champion,
            "trained_on": judged["trained_on"],
            "metrics": results["cross-validated"],
            "same_people": judged["same"],
            "sites": {
                batch: {"people": len(y), "majority": float(max(y.mean(), 1 - y.mean())), "metrics": results[batch]}
                for batch, (y, _) in judged["people"].items()
                if batch != "cross-validated"
            },
        }
        report = render_report(client, run_id, folder, people, judged, results, decision, summary, loads, undiagnosed, digest)
        (folder / "report.html").write_text(report, encoding="utf-8")

        with warehouse("evaluate") as connection, connection.cursor() as cursor:
            record(cursor, job, version, run_id, judged, results, decision, champion)
            log_to_mlflow(client, run_id, folder, figures, results, decision)
            set_aliases(client, version, decision)
        rows = Rows(in_=len(people), out=len(people))
        job.commit(rows, folder=folder, outputs=dict.fromkeys(["report.html", *(f"{n}.svg" for n in figures)]), metrics=summary)


def read_out_of_fold(client: "mlflow.MlflowClient", run_id: str) -> "pd.DataFrame":
    """Return what train wrote: candidate, repeat, fold, account_id, batch, target and probability; one row a judgement."""
    import tempfile

    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, "out_of_fold.csv", folder)
        table = pd.read_csv(path, dtype={"account_id": "str", "batch": "str"}, keep_default_na=False)
    table.attrs["chosen"] = client.get_run(run_id).data.params["chosen"]
    return table


def judge(model: Any, people: "pd.DataFrame", out_of_fold: "pd.DataFrame") -> dict[str, Any]:
    """Collect a probability for everyone from a model that had not seen them.

    Returns `people`: {`cross-validated` or a batch: (y, p)}; `trained_on`: the training batches; `same`: how many were
    left out at each other batch because their features equal those of somebody trained on; `unseen`: the frame of the
    chosen candidate's judgements; `baseline`: that of the constant answer.
    """
    features = list(model.feature_names_in_)
    unseen = out_of_fold[out_of_fold["candidate"] == out_of_fold.attrs["chosen"]]
    mean = unseen.groupby("account_id", sort=True).agg(target=("target", "first"), probability=("probability", "mean"))
    trained_on = sorted(set(out_of_fold["batch"]))
    result = {"cross-validated": (mean["target"].to_numpy(), mean["probability"].to_numpy())}
    known = people["account_id"].isin(mean.index)
    values = people[features].round(6).apply(tuple, axis=1).map(repr)
    others, seen_before = people[~known], values[~known].isin(values[known])
    same = others[seen_before]["batch"].value_counts().to_dict()
    for batch, group in others[~seen_before].groupby("batch"):
        if len(group) >= FEWEST_PEOPLE:
            result[str(batch)] = (group["target"].to_numpy(), model.predict_proba(group[features])[:, 1])
    baseline = out_of_fold[out_of_fold["candidate"] == BASELINE]
    return {"people": result, "trained_on": trained_on, "same": same, "unseen": unseen, "baseline": baseline}


def decide(
    client: "mlflow.MlflowClient",
    version: int,
    judged: dict[str, Any],
    results: dict[str, Any],
    people: "pd.DataFrame",
    seed: int,
) -> tuple["Decision", int | None]:
    """Return the gate's decision on a version, and the champion's version as it was before, None where there was none."""
    import gate
    from scores import compare

    champion = registered_version(client, "champion")
    baseline = compare(judged["unseen"], judged["baseline"], seed)
    scores = results["cross-validated"]
    if champion is None:
        return gate.decide(scores, baseline, None, None), None
    if int(champion.version) == version:
        return gate.Decision("kept champion", "it is the champion already"), version
    theirs = judge(load_model(champion.version), people, read_out_of_fold(client, champion.run_id))
    comparison = compare(judged["unseen"], theirs["unseen"], seed)
    from scores import scores as score

    both = (set(judged["people"]) & set(theirs["people"])) - {"cross-validated"}
    aucs = {site: (score(*judged["people"][site])["auc"], score(*theirs["people"][site])["auc"]) for site in sorted(both)}
    return gate.decide(scores, baseline, comparison, aucs), int(champion.version)


def draw(judged: dict[str, Any], model: Any, people: "pd.DataFrame", seed: int) -> dict[str, Any]:
    """Return the figures by name."""
    import plots

    return {
        "roc": plots.roc(judged["people"]),
        "precision_recall": plots.precision_recall(judged["people"]),
        "calibration": plots.calibration(judged["people"]),
        "confusion": plots.confusion(judged["people"]),
        "importance": plots.importance(shuffled_features(judged, model, people, seed)),
    }


def shuffled_features(judged: dict[str, Any], model: Any, people: "pd.DataFrame", seed: int) -> dict[str, "np.ndarray"]:
    """Return for each feature by how much the log-loss rises when it is shuffled among people, once for each shuffle.

    Taken on the people outside the training batches where there are any, else on the training batches. Breiman, Mach.
    Learn. 45 (2001) 5.
    """
    from sklearn.inspection import permutation_importance

    outside = people[~people["batch"].isin(judged["trained_on"])]
    sample = outside if len(outside) >= FEWEST_PEOPLE else people
    features = list(model.feature_names_in_)
    found = permutation_importance(
        model, sample[features], sample["target"], scoring="neg_log_loss", n_repeats=SHUFFLES, random_state=seed
    )
    return dict(zip(features, found.importances, strict=True))


def render_report(
    client: "mlflow.MlflowClient",
    run_id: str,
    folder: Path,
    people: "pd.DataFrame",
    judged: dict[str, Any],
    results: dict[str, Any],
    decision: "Decision",
    summary: dict[str, Any],
    loads: list[dict[str, Any]],
    undiagnosed: int,
    digest: str,
) -> str:
    """Return the report: one HTML page with its pictures inside, every figure from the results."""
    import jinja2

    run = client.get_run(run_id)
    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    features = [c for c in people.columns if c not in ("account_id", "target", "batch", "load_id")]
    missing = people[features].isna().groupby(people["batch"]).mean()
    return template.render(
        summary=summary,
        decision=decision,
        results=results,
        counts={batch: {"people": len(y), "diseased": int(y.sum()), "majority": max(y.mean(), 1 - y.mean())}
                for batch, (y, _) in judged["people"].items()},
        same=judged["same"],
        candidates=sorted(
            ({"name": c.info.run_name, **c.data.metrics} for c in children), key=lambda c: c["log_loss"]
        ),
        chosen=run.data.params["chosen"],
        parameters=run.data.params,
        loads=loads,
        undiagnosed=undiagnosed,
        missing={batch: row.to_dict() for batch, row in missing.iterrows()},
        features=features,
        digest=digest,
        pictures={path.stem: "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
                  for path in folder.glob("*.svg")},
        people=len(people),
    )  # fmt: skip


def record(
    cursor: "Cursor",
    job: Job,
    version: int,
    run_id: str,
    judged: dict[str, Any],
    results: dict[str, Any],
    decision: "Decision",
    champion: int | None,
) -> None:
    """Write the scores and the decision to the warehouse."""
    for batch, metrics in results.items():
        trained = batch == "cross-validated"
        place = "+".join(judged["trained_on"]) if trained else batch
        for metric, value in metrics.items():
            cursor.execute(
                "INSERT INTO heart_analysis.model_evaluation (model_name, model_version, batch, trained, metric, value, low, "
                "high, people, run, mlflow_run_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [MODEL_NAME, version, place, trained, metric, value["value"], value["low"], value["high"],
                 len(judged["people"][batch][0]), job.run, run_id],
            )  # fmt: skip
    to = version if decision.outcome == "promoted" else champion
    cursor.execute(
        "INSERT INTO heart_analysis.promotion (model_name, decision, from_version, to_version, candidate_version, reason, "
        "decided_by) VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [MODEL_NAME, decision.outcome, champion, to, version, decision.reason, f"evaluate, run {job.run}"],
    )


def log_to_mlflow(
    client: "mlflow.MlflowClient",
    run_id: str,
    folder: Path,
    figures: dict[str, Any],
    results: dict[str, Any],
    decision: "Decision",
) -> None:
    """Add scores, plots, report and decision to the run that trained the model."""
    for batch, metrics in results.items():
        for metric, value in metrics.items():
            for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                if value[part] is not None:
                    client.log_metric(run_id, f"{batch}/{metric}{suffix}", value[part])
    for name in figures:
        client.log_artifact(run_id, str(folder / f"{name}.svg"), "plots")
    client.log_artifact(run_id, str(folder / "report.html"))
    client.set_tag(run_id, "heart.decision", decision.outcome)
    client.set_tag(run_id, "heart.reason", decision.reason)


def set_aliases(client: "mlflow.MlflowClient", version: int, decision: "Decision") -> None:
    """Let the alias `champion` name a promoted version, and tag the version with the decision."""
    client.set_model_version_tag(MODEL_NAME, str(version), "decision", decision.outcome)
    client.set_model_version_tag(MODEL_NAME, str(version), "reason", decision.reason)
    if decision.outcome == "promoted":
        client.set_registered_model_alias(MODEL_NAME, "champion", str(version))
        client.delete_registered_model_alias(MODEL_NAME, "challenger")


if __name__ == "__main__":
    evaluate()
