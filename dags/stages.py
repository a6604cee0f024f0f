"""THE CONTRACT: what each stage is called, comes after, may see, and may use.

Written once, read by everything that runs, builds or tests a stage. Standard library only. A stage is a folder of
`images/` with the same name. It promises what README.md lists under "The contract of a stage".
"""

from dataclasses import dataclass
from datetime import timedelta

# Every stage is told these: the run and the batch it works for, where files are shared, what image it is and of which
# revision of the code, whether to work even where nothing changed.
COMMON_ENVIRONMENT = ("HEART_RUN", "HEART_ARTIFACTS", "HEART_IMAGE", "HEART_REVISION", "HEART_FORCE")
POSTGRES = ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSFILE")
MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_CREDENTIALS")

# Exit codes (README.md, "The contract of a stage").
DONE, USAGE, REFUSED, UNAVAILABLE, NOTHING_TO_DO = 0, 2, 65, 75, 99
# A retry of these would end the same way.
NOT_RETRIED = (USAGE, REFUSED)

# The one line of a stage's standard output that is its result document starts with this.
RESULT_MARKER = "::heart-result::"


@dataclass(frozen=True)
class Stage:
    """What the rest of the system knows of one stage.

    per_batch: whether it runs once for each delivery, or once for all; environment: the variables it may see beside the
    common ones; memory in bytes' units of Docker; timeout: the longest that one run may take; retries: after exit codes
    that another try may mend.
    """

    name: str
    summary: str
    upstream: tuple[str, ...]
    reads: str
    writes: str
    per_batch: bool
    environment: tuple[str, ...]
    networks: tuple[str, ...]
    memory: str
    cpus: float
    timeout: timedelta
    retries: int

    @property
    def variables(self) -> tuple[str, ...]:
        """Return every variable that the stage may see."""
        batch = ("HEART_BATCH",) if self.per_batch else ()
        return (*COMMON_ENVIRONMENT, *batch, *self.environment)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="extract",
            summary="read a batch as it was delivered, set malformed lines aside",
            upstream=(),
            reads="the delivered CSV files",
            writes="account.csv, heart.csv, quarantine.csv",
            per_batch=True,
            environment=("HEART_DATA", "HEART_DIALECT"),
            networks=(),
            memory="512m",
            cpus=1,
            timeout=timedelta(minutes=30),
            retries=2,
        ),
        Stage(
            name="transform",
            summary="join, type and check the records, in canonical codes",
            upstream=("extract",),
            reads="extract's files",
            writes="records.csv, quarantine.csv, duplicates.csv",
            per_batch=True,
            environment=(),
            networks=(),
            memory="512m",
            cpus=2,
            timeout=timedelta(minutes=30),
            retries=2,
        ),
        Stage(
            name="load",
            summary="move the records into the warehouse, in one transaction",
            upstream=("transform",),
            reads="transform's files",
            writes="account_dim, heart_disease_dim, heart_fact, quarantine, load_batch",
            per_batch=True,
            environment=POSTGRES,
            networks=("warehouse",),
            memory="512m",
            cpus=1,
            timeout=timedelta(minutes=30),
            retries=4,
        ),
        Stage(
            name="train",
            summary="compare candidates by nested cross-validation, register the best",
            upstream=(),
            reads="heart_sample",
            writes="an MLflow run, a model version, out_of_fold.csv",
            per_batch=False,
            environment=(*POSTGRES, *MLFLOW, "HEART_TRAINING_BATCH", "HEART_SEED", "HEART_REPEATS"),
            networks=("warehouse", "mlflow"),
            memory="4g",
            cpus=2,
            timeout=timedelta(hours=1),
            retries=3,
        ),
        Stage(
            name="evaluate",
            summary="judge the model on people it has not seen, decide on the champion",
            upstream=("train",),
            reads="heart_sample, load_batch, the model and its out-of-fold probabilities",
            writes="model_evaluation, drift, promotion, the aliases, report.html and plots",
            per_batch=False,
            environment=(*POSTGRES, *MLFLOW, "HEART_SEED"),
            networks=("warehouse", "mlflow"),
            memory="4g",
            cpus=2,
            timeout=timedelta(hours=1),
            retries=3,
        ),
        Stage(
            name="predict",
            summary="score everyone without a diagnosis with the champion",
            upstream=("evaluate",),
            reads="heart_feature, the champion",
            writes="heart_prediction",
            per_batch=False,
            environment=(*POSTGRES, *MLFLOW, "HEART_SCORED_BATCH"),
            networks=("warehouse", "mlflow"),
            memory="2g",
            cpus=1,
            timeout=timedelta(minutes=30),
            retries=3,
        ),
    )
}
