"""The DAGs: what follows what is what the contract says; parameters are checked; nothing works at parse time."""

import json
import subprocess
import sys

import pytest

from support import ENVIRONMENTS, ROOT, STAGES, base_environment

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


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    environment = base_environment() | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "HEART_ENVIRONMENTS": str(ENVIRONMENTS),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    (answer,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")] or pytest.fail(
        done.stdout + done.stderr
    )
    return json.loads(answer.removeprefix("ANSWER "))


def test_dags_are_read_without_error_and_without_work(parsed):
    assert parsed["errors"] == {}
    assert set(parsed["dags"]) == {"etl_dag", "ml_dag", "housekeeping_dag"}
    assert all(dag["doc"] for dag in parsed["dags"].values())
    # Generous: a parse that opened a connection or read data would take longer still.
    assert all(seconds < 3 for seconds in parsed["seconds"].values()), parsed["seconds"]


def test_stages_follow_each_other_as_the_contract_says(parsed):
    found = {}
    for dag in parsed["dags"].values():
        for task_id, task in dag["tasks"].items():
            if task["stage"]:
                found[task["stage"]] = {u.rsplit(".", 1)[-1] for u in task["upstream"] if u.rsplit(".", 1)[-1] in STAGES}
                assert task_id.rsplit(".", 1)[-1] == task["stage"] and task["doc"]
                assert task["retries"] == STAGES[task["stage"]].retries
                assert task["trigger_rule"] == "none_failed"
    assert found == {name: set(stage.upstream) for name, stage in STAGES.items()}


def test_the_warehouse_asset_links_the_two(parsed):
    etl, ml = parsed["dags"]["etl_dag"], parsed["dags"]["ml_dag"]
    assert etl["tasks"]["announce"]["outlets"] == ["warehouse"] == ml["schedule"]
    assert etl["tasks"]["announce"]["trigger_rule"] == "all_done_min_one_success"
    assert etl["tasks"]["fail"]["trigger_rule"] == "one_failed"


def test_parameters_have_types_titles_and_help(parsed):
    for dag in parsed["dags"].values():
        for name, schema in dag["params"].items():
            assert schema.get("type") or schema.get("enum"), name
            assert schema["title"] and schema["description"], name
    assert parsed["dags"]["etl_dag"]["params"]["dialect"]["enum"] == ["uci", "kaggle"]
