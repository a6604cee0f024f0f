"""Whoever takes the worker over does not get the machine: the engine is reached through the gateway alone."""

import json

import pytest

pytestmark = pytest.mark.docker


def test_the_engines_socket_is_in_the_gateway_alone(stack, first):
    config = json.loads(stack.compose("config", "--format", "json"))["services"]
    mounted = {name for name, service in config.items() if "docker.sock" in json.dumps(service.get("volumes", []))}
    assert mounted == {"gateway"}
    neighbours = {name for name, service in config.items() if "engine" in service.get("networks", {})}
    assert neighbours == {"gateway", "airflow-worker"}, "nobody else reaches it"
    assert "ports" not in config["gateway"] and config["gateway"]["read_only"]


def test_no_escape_from_the_worker_while_the_pipeline_runs(attacked):
    found = dict(attacked.answers)
    needed = {name: found.pop(name) for name in list(found) if name.startswith("needed")}
    assert [status for status, _ in needed.values()] == [200, 201, 204], needed
    passed = {name: answer for name, answer in found.items() if answer[0] != 403}
    assert not passed and len(found) > 70
    for name, (_, message) in found.items():
        assert message.startswith("refused by the gateway: "), name
    assert attacked.after == attacked.before
    assert "refused POST" in attacked.log
    assert attacked.outcome == "success"
