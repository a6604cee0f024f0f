"""From the warehouse to a judged model and to predictions. Follows whenever the asset `warehouse` has changed.

1. **train** compares candidates by nested cross-validation and registers the best as `challenger`,
2. **evaluate** judges it on people it has not seen, and makes it `champion`, keeps the old one, or refuses it,
3. **predict** scores everyone without a diagnosis with the champion.

Where nothing has changed since the last time, each stage skips itself. Where a new batch with diagnoses has drifted, its
people being unlike those that the model knows, **retrain** starts this DAG once more, to train on that batch too.
"""

import os
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag, task

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
        "repeats": Param(
            int(os.environ.get("HEART_REPEATS", "10")),
            type="integer",
            minimum=1,
            maximum=100,
            title="Repeats",
            description="How often cross-validation is repeated.",
        ),
        "training_batch": Param(
            "", type="string", title="Training batches", description="Separated by spaces; empty: the one with the most people."
        ),
        "scored_batch": Param(
            "",
            type="string",
            title="Score whole batches",
            description="Separated by spaces: score everyone there, with or without a diagnosis; empty: everyone without.",
        ),
        "retrain": Param(
            True,
            type="boolean",
            title="Train again on drift",
            description="Where a new batch with diagnoses has drifted, start another run that trains on it too.",
        ),
        "force": Param(False, type="boolean", title="Force", description="Do the work even where nothing changed."),
    },
)
def ml_dag() -> None:
    """Build the DAG from the stages that run once for all batches."""
    tasks: dict[str, StageTask] = {}
    given = {"HEART_SEED": "seed", "HEART_TRAINING_BATCH": "training_batch", "HEART_SCORED_BATCH": "scored_batch",
             "HEART_REPEATS": "repeats"}  # fmt: skip
    for stage in (s for s in STAGES.values() if not s.per_batch):
        variables = {"HEART_FORCE": "{{ params.force }}"}
        variables |= {name: f"{{{{ params.{param} }}}}" for name, param in given.items() if name in stage.environment}
        tasks[stage.name] = stage_operator(stage=stage.name, variables=variables, trigger_rule="none_failed")
        for upstream in stage.upstream:
            tasks[upstream] >> tasks[stage.name]

    @task.short_circuit(trigger_rule="none_failed", doc_md="**passes where a new batch with diagnoses has drifted**")
    def drifted(params: Any = None, ti: Any = None) -> bool:
        """Return whether evaluate found a reason to train again, and this run may set that off."""
        result = ti.xcom_pull(task_ids="evaluate") or {}
        found = result.get("outcome") == "done" and result["metrics"]["retrain_on"]
        # A run that was told what to train on was told by somebody, or by this task: it sets off no other.
        return bool(found and params["retrain"] and not params["training_batch"])

    retrain = TriggerDagRunOperator(
        task_id="retrain",
        trigger_dag_id="ml_dag",
        conf={"training_batch": "{{ ti.xcom_pull(task_ids='evaluate')['metrics']['retrain_on'] | join(' ') }}"},
        doc_md="**starts this DAG again, on the drifted batches too**",
    )
    tasks["evaluate"] >> drifted() >> retrain


ml_dag()
