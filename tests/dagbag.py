"""What Airflow finds when it reads the DAG files."""

import json
import subprocess
import sys
import tempfile
from typing import Any

from support import ENVIRONMENTS, ROOT, base_environment

PROGRAM = """
import json, sys, time
sys.path.insert(0, "dags")
import airflow.sdk, operators  # what Airflow's processes have imported anyway
from airflow.dag_processing.dagbag import DagBag
bag = DagBag("dags")
print("ANSWER", json.dumps({
    "errors": bag.import_errors,
    "seconds": {s.file: s.duration.total_seconds() for s in bag.dagbag_stats},
    "dags": {
        dag_id: {
            "tasks": {t.task_id: {"upstream": sorted(t.upstream_task_ids), "stage": getattr(t, "stage", None),
                                  "doc": bool(t.doc_md),
                                  "retries": t.retries, "trigger_rule": t.trigger_rule,
                                  "outlets": [o.name for o in t.outlets]} for t in dag.tasks},
            "doc": bool(dag.doc_md),
            "params": {name: {"description": param.description, **param.schema}
                       for name, param in ((n, dag.params.get_param(n)) for n in dag.params)},
            "schedule": [asset.name for asset in dag.schedule] if isinstance(dag.schedule, list) else None,
        }
        for dag_id, dag in bag.dags.items()
    },
}, default=str))
"""


def read_dags() -> dict[str, Any]:
    """Return the DAGs, their tasks and parameters, the errors, and the seconds each file took beyond Airflow's own imports."""
    with tempfile.TemporaryDirectory() as home:
        environment = base_environment() | {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "HEART_ENVIRONMENTS": str(ENVIRONMENTS),
        }
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(answers) == 1, done.stdout + done.stderr
    return json.loads(answers[0].removeprefix("ANSWER "))
