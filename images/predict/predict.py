"""predict: give people the champion's probability of heart disease, with what speaks for it and how sure it can be.

Reads   `heart_analysis.heart_feature` in PostgreSQL: people without a diagnosis, or all people of chosen batches; the
        champion in MLflow's registry.
Writes  `heart_analysis.heart_prediction`: probability, the range that unknown features leave, the features that matter most,
        model version. Rows are only added: one for each person, record and model version. Of a single person, whose findings
        are given as options, nothing is written: the answer is printed.
Promise a person is scored again when the record or the champion changes, and not otherwise.
"""

import csv
import io
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from features import CODES, FEATURES, QUANTITIES
from services import MLFLOW, MODEL_NAME, POSTGRES, load_model, mlflow_client, read_frame, registered_version, warehouse
from stage import File, InputRefused, Job, Rows, command, log

if TYPE_CHECKING:
    import pandas as pd
    from psycopg2.extensions import cursor as Cursor

PEOPLE = """
SELECT account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, load_id
FROM heart_analysis.heart_feature
"""
UNDIAGNOSED = 'WHERE target IS NULL ORDER BY account_id COLLATE "C"'
OF_BATCHES = 'WHERE batch = ANY (%s) ORDER BY account_id COLLATE "C"'
SCORED = "SELECT account_id, load_id FROM heart_analysis.heart_prediction WHERE model_name = %s AND model_version = %s"
MEANING = {
    "age": "years", "sex": "0 female, 1 male", "cp": "chest pain: 1 typical angina, 2 atypical, 3 other pain, 4 none",
    "trestbps": "resting blood pressure, mm Hg", "chol": "serum cholesterol, mg/dl", "fbs": "fasting blood sugar above 120 mg/dl",
    "restecg": "resting ECG: 0 normal, 1 ST-T abnormal, 2 hypertrophy", "thalach": "highest heart rate, bpm",
    "exang": "exercise brings on angina",
    "oldpeak": "ST depression by exercise, mm", "slope": "of the ST segment: 1 up, 2 flat, 3 down",
    "ca": "major vessels coloured by fluoroscopy", "thal": "thallium scan: 3 normal, 6 fixed, 7 reversible defect",
}  # fmt: skip


def findings(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each of a person's 13 findings."""
    for name in reversed(FEATURES):
        kind: click.ParamType = (
            click.Choice([str(code) for code in CODES[name]]) if name in CODES else click.FloatRange(*QUANTITIES[name])
        )
        function = click.option(f"--{name}", type=kind, help=f"Of a single person: {MEANING[name]}.")(function)
    return function


@command("Score everyone without a diagnosis with the champion, everyone of a batch, or one person.", per_batch=False,
         environment=POSTGRES | MLFLOW)  # fmt: skip
@click.option("--scored-batch", envvar="HEART_SCORED_BATCH", show_envvar=True, multiple=True,
              help="Score everyone of this batch, with or without a diagnosis; may be given again.")  # fmt: skip
@findings
def predict(job: Job, scored_batch: tuple[str, ...], **person: str | float | None) -> None:
    """Run the stage: see the module's docstring."""
    known = {name: float(value) for name, value in person.items() if value is not None}
    if known:
        answer_for(known)
        return
    with mlflow_client() as client, warehouse("predict") as connection, connection.cursor() as cursor:
        champion = registered_version(client, "champion")
        chosen = cursor.mogrify(OF_BATCHES, [list(scored_batch)]).decode() if scored_batch else UNDIAGNOSED
        people = read_frame(cursor, PEOPLE + chosen)
        if scored_batch and people.empty:
            raise InputRefused(f"batch {', '.join(scored_batch)}: nobody of that name is in the warehouse; load it first")
        if champion is None:
            metrics = {"model_version": None, "undiagnosed": len(people), "scored": 0}
            job.nothing_to_do("no model was good enough to be champion, so nobody is scored", Rows(in_=0, out=0), metrics)
        cursor.execute(SCORED, [MODEL_NAME, int(champion.version)])
        scored = set(cursor.fetchall())
        due = people[[key not in scored for key in zip(people["account_id"], people["load_id"], strict=True)]]
        metrics = {"model_version": int(champion.version), "undiagnosed": len(people), "scored": len(due)}
        if due.empty:
            reason = (
                "everyone has a diagnosis" if people.empty else f"all {len(people)} were scored by version {champion.version}"
            )
            job.nothing_to_do(reason, Rows(in_=0, out=0), metrics)
        predictions = score(load_model(champion.version), due)
        write(cursor, predictions, champion.version, champion.run_id, job.run)
    log.info("scored", extra=metrics)
    job.commit(Rows(in_=len(due), out=len(predictions)), metrics=metrics,
               tables=[File("heart_analysis.heart_prediction", "", len(predictions))])  # fmt: skip


def score(model: Any, people: "pd.DataFrame") -> "pd.DataFrame":
    """Return for each person account_id, probability, low and high (NaN where unknown), load_id, missing, unexpected, factors."""
    import pandas as pd

    import explain

    X = people[list(FEATURES)].astype("float64")
    ends = explain.interval(model, X)
    return pd.DataFrame({
        "account_id": people["account_id"].to_numpy(),
        "probability": model.predict_proba(X)[:, 1],
        "low": ends[:, 0],
        "high": ends[:, 1],
        "load_id": people["load_id"].to_numpy(),
        "missing": [[name for name, absent in zip(FEATURES, row, strict=True) if absent] for row in X.isna().to_numpy()],
        "unexpected": explain.unexpectedly_unknown(model, X),
        "factors": explain.top_factors(model, X),
    })  # fmt: skip


def write(cursor: "Cursor", predictions: "pd.DataFrame", version: str, run_id: str, run: str) -> None:
    """Add the predictions with COPY."""
    buffer = io.StringIO()
    rows = csv.writer(buffer)
    for p in predictions.itertuples(index=False):
        note = f"not known, but of nearly all people trained on: {', '.join(p.unexpected)}" if p.unexpected else ""
        ends = ["" if math.isnan(end) else repr(float(end)) for end in (p.low, p.high)]
        rows.writerow((p.account_id, repr(float(p.probability)), *ends, json.dumps(p.factors), note, MODEL_NAME, version, run_id,
                       p.load_id, "{" + ",".join(p.missing) + "}", run))  # fmt: skip
    buffer.seek(0)
    cursor.copy_expert(
        "COPY heart_analysis.heart_prediction (account_id, probability, low, high, factors, note, model_name, model_version, "
        "mlflow_run_id, load_id, missing, run) FROM STDIN (FORMAT csv)",
        buffer,
    )


def answer_for(person: dict[str, float]) -> None:
    """Print what the champion says of one person, whose known findings are given. Raises InputRefused without a champion."""
    import pandas as pd

    with mlflow_client() as client:
        champion = registered_version(client, "champion")
        if champion is None:
            raise InputRefused("there is no champion to ask; run the pipeline first")
        model = load_model(champion.version)
        kind = client.get_run(champion.run_id).data.params
    people = pd.DataFrame([person], columns=list(FEATURES), dtype="float64").assign(account_id="", load_id=0)
    (p,) = score(model, people).itertuples(index=False)
    missing = f"{len(p.missing)} of {len(FEATURES)} findings are not known"
    print(f"Probability of heart disease: {p.probability:.2f}")
    if p.missing and not math.isnan(p.low):
        print(f"  {missing}; if they were, it would lie between {p.low:.2f} and {p.high:.2f} in 95 % of cases")
    elif p.missing:
        print(f"  {missing}: {', '.join(p.missing)}")
    for factor in (f for f in p.factors if abs(f["effect"]) >= 0.005):
        direction = "raises" if factor["effect"] > 0 else "lowers"
        print(f"  {factor['feature']} = {factor['value']:g} {direction} the log-odds by {abs(factor['effect']):.2f}"
              f"  ({MEANING[factor['feature']]})")  # fmt: skip
    print(f"Model {MODEL_NAME}, version {champion.version}: {kind['chosen']}, trained on {kind['training_batches']}")
    print("Not for use on patients.")


if __name__ == "__main__":
    predict()
