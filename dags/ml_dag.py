"""From the warehouse to a judged model and to predictions. Follows whenever the asset `warehouse` has changed.

1. **train** compares candidates by nested cross-validation and registers the best as `challenger`,
2. **evaluate** judges it on people it has not seen, and makes it `champion`, keeps the old one, or refuses it,
3. **predict** scores everyone without a diagnosis with the champion.

Where nothing has changed since the last time, each stage skips itself.
"""

from airflow.sdk import Param, dag

from assets import WAREHOUSE
from operators import StageTask, report_failure, stage_operator
from stages import STAGES


@dag(
    schedule=[WAREHOUSE],
    catchup=False,
    doc_md=__doc__,
    tags=["heart"],
    default_args={"on_failure_callback": report_failure},
    max_active_runs=1,
    params={
        "seed": Param(1989, type="integer", title="Seed", description="Fixes folds, models and resampling."),
        "training_batch": Param(
            "", type="string", title="Training batches", description="Separated by spaces; empty: the one with the most people."
        ),
        "force": Param(False, type="boolean", title="Force", description="Do the work even where nothing changed."),
    },
)
def ml_dag() -> None:
    """Build the DAG from the stages that run once for all batches."""
    tasks: dict[str, StageTask] = {}
    for stage in (s for s in STAGES.values() if not s.per_batch):
        variables = {"HEART_FORCE": "{{ params.force }}"}
        if "HEART_SEED" in stage.environment:
            variables["HEART_SEED"] = "{{ params.seed }}"
        if "HEART_TRAINING_BATCH" in stage.environment:
            variables["HEART_TRAINING_BATCH"] = "{{ params.training_batch }}"
        tasks[stage.name] = stage_operator(stage=stage.name, variables=variables, trigger_rule="none_failed")
        for upstream in stage.upstream:
            tasks[upstream] >> tasks[stage.name]


ml_dag()
