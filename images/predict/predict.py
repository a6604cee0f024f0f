"""predict: give people the champion's probability of heart disease, with what speaks for it and how sure it can be.

Reads   `heart_analysis.heart_feature` in PostgreSQL: people without a diagnosis, or all people of chosen batches; the
        champion in MLflow's registry.
Writes  `heart_analysis.heart_prediction`: probability, the range that unknown features leave, the features that matter most,
        model version. Rows are only added: one for each person, record and model version. Of a single person, whose findings
        are given as options, nothing is written: the answer is printed.
Promise a person is scored again when the record or the champion changes, and not otherwise.
"""

import functools
import gc
import io
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from typing import TYPE_CHECKING, Any

import click

from features import CODES, FEATURES, QUANTITIES
from services import MLFLOW, MODEL_NAME, POSTGRES, load_model, mlflow_client, registered_version, warehouse
from stage import File, InputRefused, Job, Rows, command, log

if TYPE_CHECKING:
    import pandas as pd
    from psycopg2.extensions import connection as Connection

# So many people are read, scored and written at a time: memory does not depend on how many there are.
AT_A_TIME = 20_000
UNDIAGNOSED, OF_BATCHES = "target IS NULL", "batch = ANY (%s)"
# People whose record, as it is now, this version has not scored. {} tells of whom.
DUE = """
SELECT account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, load_id
FROM heart_analysis.heart_feature AS person
WHERE {} AND NOT EXISTS (
    SELECT FROM heart_analysis.heart_prediction AS known
    WHERE known.account_id = person.account_id AND known.load_id = person.load_id AND model_name = %s AND model_version = %s)
ORDER BY account_id
"""
COPY_PREDICTIONS = """
COPY heart_analysis.heart_prediction
    (account_id, probability, low, high, factors, note, load_id, missing, model_name, model_version, mlflow_run_id, run)
FROM STDIN
"""
NULL = r"\N"
# Two runs take turns: the second finds what the first has scored.
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('heart_analysis.heart_prediction'))"
# Whoever wants the table to himself waits for the connection that reads, and the one that writes would wait behind him.
NOT_FOR_EVER = "SET LOCAL lock_timeout = '1min'"
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
    # One connection reads on while the other takes in what was scored before.
    with (
        mlflow_client() as client,
        warehouse("predict") as reading,
        warehouse("predict") as connection,
        connection.cursor() as cursor,
        ThreadPoolExecutor(1) as writer,
    ):
        champion = registered_version(client, "champion")
        whom = cursor.mogrify(OF_BATCHES, [list(scored_batch)]).decode() if scored_batch else UNDIAGNOSED
        cursor.execute(f"SELECT count(*) FROM heart_analysis.heart_feature WHERE {whom}")  # noqa: S608
        (chosen,) = cursor.fetchone() or (0,)
        if scored_batch and not chosen:
            raise InputRefused(f"batch {', '.join(scored_batch)}: nobody of that name is in the warehouse; load it first")
        if champion is None:
            metrics = {"model_version": None, "undiagnosed": chosen, "scored": 0}
            job.nothing_to_do("no model was good enough to be champion, so nobody is scored", Rows(in_=0, out=0), metrics)
        metrics = {"model_version": int(champion.version), "undiagnosed": chosen, "scored": 0}
        cursor.execute(ONE_AT_A_TIME)
        cursor.execute(NOT_FOR_EVER)
        model, written = None, None
        gc.disable()  # looking for garbage took a fifth of the time, and made memory no smaller
        for people in due(reading, whom, champion.version):
            model = model or load_model(champion.version)
            rows = as_rows(score(model, people), champion.version, champion.run_id, job.run)
            if written:
                written.result()
            written = writer.submit(cursor.copy_expert, COPY_PREDICTIONS, io.StringIO(rows))
            metrics["scored"] += len(people)
            log.info("scored", extra=metrics)
        if written:
            written.result()
        else:
            reason = f"all {chosen} were scored by version {champion.version}" if chosen else "everyone has a diagnosis"
            job.nothing_to_do(reason, Rows(in_=0, out=0), metrics)
    scored = metrics["scored"]
    job.commit(Rows(in_=scored, out=scored), metrics=metrics, tables=[File("heart_analysis.heart_prediction", "", scored)])


def due(connection: "Connection", whom: str, version: str) -> "Iterator[pd.DataFrame]":
    """Give those to be scored, at most AT_A_TIME together: account_id, 13 features (float64), load_id (int64).

    whom: a condition that tells of whom to score the records that this version has not.
    """
    import pandas as pd

    with connection.cursor("due") as cursor:
        cursor.execute(DUE.format(whom), [MODEL_NAME, int(version)])
        while rows := cursor.fetchmany(AT_A_TIME):
            columns = ["account_id", *FEATURES, "load_id"]
            yield pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(FEATURES, "float64"))


def score(model: Any, people: "pd.DataFrame") -> "pd.DataFrame":
    """Return for each person account_id, probability, low and high (NaN where unknown), load_id, missing, unexpected, factors."""
    import pandas as pd

    import explain

    X = people[list(FEATURES)]
    ends = explain.interval(model, X)
    return pd.DataFrame({
        "account_id": people["account_id"].to_numpy(),
        "probability": model.predict_proba(X)[:, 1],
        "low": ends[:, 0],
        "high": ends[:, 1],
        "load_id": people["load_id"].to_numpy(),
        "missing": explain.names_of(X.isna().to_numpy()),
        "unexpected": explain.names_of(explain.unexpectedly_unknown(model, X)),
        "factors": explain.top_factors(model, X),
    })  # fmt: skip


def as_rows(predictions: "pd.DataFrame", version: str, run_id: str, run: str) -> str:
    """Return the predictions as COPY's own text format has them: nothing in them needs an escape."""
    p = predictions
    columns = (
        p["account_id"],
        map(number, p["probability"].tolist()),
        map(number, p["low"].tolist()),
        map(number, p["high"].tolist()),
        (f"[{', '.join(starmap(as_json, factors))}]" for factors in p["factors"]),
        map(note_on, p["unexpected"]),
        map(str, p["load_id"].tolist()),
        (f"{{{','.join(names)}}}" for names in p["missing"]),
    )
    end = f"\t{MODEL_NAME}\t{version}\t{run_id}\t{run}\n"
    return "".join(["\t".join(row) + end for row in zip(*columns, strict=True)])


def number(value: float) -> str:
    """Return a number as COPY reads it."""
    return repr(value) if value == value else NULL


def note_on(unexpected: list[str]) -> str:
    """Return what is odd about a record, as COPY reads it."""
    return f"not known, but of nearly all people trained on: {', '.join(unexpected)}" if unexpected else NULL


@functools.lru_cache(10_000)
def as_json(feature: str, value: float, effect: float) -> str:
    """Return a factor as JSON. The same few come again and again."""
    return json.dumps({"feature": feature, "value": value, "effect": effect})


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
    for feature, value, effect in (factor for factor in p.factors if abs(factor[2]) >= 0.005):
        direction = "raises" if effect > 0 else "lowers"
        print(f"  {feature} = {value:g} {direction} the log-odds by {abs(effect):.2f}  ({MEANING[feature]})")
    print(f"Model {MODEL_NAME}, version {champion.version}: {kind['chosen']}, trained on {kind['training_batches']}")
    print("Not for use on patients.")


if __name__ == "__main__":
    predict()
