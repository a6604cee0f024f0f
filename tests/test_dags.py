"""The DAGs: what follows what is what the contract says; parameters are checked; nothing works at parse time."""

import pytest

from dagbag import read_dags
from support import STAGES


@pytest.fixture(scope="module")
def parsed():
    return read_dags()


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
