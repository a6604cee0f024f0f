"""predict: give everyone who has no diagnosis yet the champion's probability of heart disease.

Reads   `heart_analysis.heart_feature` in PostgreSQL: people without a diagnosis; the champion in MLflow's registry.
Writes  `heart_analysis.heart_prediction`: probability, model version, and which features were not known. Rows are only
        added: one for each person, record and model version.
Promise a person is scored again when the record or the champion changes, and not otherwise.
"""

import csv
import io
from typing import TYPE_CHECKING, Any

from services import MLFLOW, MODEL_NAME, POSTGRES, load_model, mlflow_client, read_frame, registered_version, warehouse
from stage import File, Job, Rows, command, log

if TYPE_CHECKING:
    import pandas as pd
    from psycopg2.extensions import cursor as Cursor

UNDIAGNOSED = """
SELECT account_id, age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, load_id
FROM heart_analysis.heart_feature WHERE target IS NULL ORDER BY account_id COLLATE "C"
"""
SCORED = "SELECT account_id, load_id FROM heart_analysis.heart_prediction WHERE model_name = %s AND model_version = %s"


@command("Score everyone without a diagnosis with the champion.", per_batch=False, environment=POSTGRES | MLFLOW)
def predict(job: Job) -> None:
    """Run the stage: see the module's docstring."""
    with mlflow_client() as client, warehouse("predict") as connection, connection.cursor() as cursor:
        champion = registered_version(client, "champion")
        people = read_frame(cursor, UNDIAGNOSED)
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
        predictions = score(champion.version, due)
        write(cursor, predictions, int(champion.version), job.run)
    log.info("scored", extra=metrics)
    job.commit(Rows(in_=len(due), out=len(predictions)), metrics=metrics,
               tables=[File("heart_analysis.heart_prediction", "", len(predictions))])  # fmt: skip


def score(version: str, people: "pd.DataFrame") -> list[tuple[Any, ...]]:
    """Return account_id, probability of disease, load_id and the features that are not known, for each person."""
    model = load_model(version)
    X = people[list(model.feature_names_in_)].astype("float64")
    missing = [[name for name, absent in row.items() if absent] for row in X.isna().to_dict("records")]
    probability = model.predict_proba(X)[:, 1]
    return list(zip(people["account_id"], probability, people["load_id"], missing, strict=True))


def write(cursor: "Cursor", predictions: list[tuple[Any, ...]], version: int, run: str) -> None:
    """Add the predictions with COPY."""
    buffer = io.StringIO()
    rows = csv.writer(buffer)
    for account_id, probability, load_id, missing in predictions:
        rows.writerow((account_id, repr(float(probability)), MODEL_NAME, version, load_id, "{" + ",".join(missing) + "}", run))
    buffer.seek(0)
    cursor.copy_expert(
        "COPY heart_analysis.heart_prediction (account_id, probability, model_name, model_version, load_id, missing, run) "
        "FROM STDIN (FORMAT csv)",
        buffer,
    )


if __name__ == "__main__":
    predict()
