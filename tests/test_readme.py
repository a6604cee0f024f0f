"""What README.md tells people to type works as it stands."""

import json
import re
import subprocess

import pytest

from runners import docker, inspect
from support import NOTHING_TO_DO, RESULT_MARKER, ROOT, Warehouse, base_environment, make_warehouse

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_stages_run_alone_as_the_readme_says(postgres, mlflow, tmp_path):
    warehouse = Warehouse(make_warehouse(postgres))
    section = README.split("### Run one stage alone")[1].split("###")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) == 2
    script = "set -e\n" + blocks[0].replace("/tmp/heart", str(tmp_path)) + blocks[1].replace("stage predict", "")
    reach = warehouse.environment | {"MLFLOW_TRACKING_URI": mlflow, "HEART_REPEATS": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=base_environment() | reach, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    script = blocks[0].replace("/tmp/heart", str(tmp_path)).split("stage extract")[0] + "stage predict"
    last = subprocess.run(["bash", "-c", script], cwd=ROOT, env=base_environment() | reach, capture_output=True, text=True)
    assert last.returncode == NOTHING_TO_DO and "everyone has a diagnosis" in last.stderr
    assert warehouse.query("SELECT rows_loaded FROM heart_analysis.load_batch") == [(303,)]


@pytest.mark.docker
def test_one_stage_runs_in_its_container_as_the_readme_says():
    section = README.split("### Run one stage in its container")[1].split("###")[0]
    (script,) = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    environment = base_environment() | {"COMPOSE_PROJECT_NAME": "heart-readme"}
    try:
        done = subprocess.run(["bash", "-c", f"set -e\n{script.replace('heart_artifacts', 'heart-readme_artifacts')}"], cwd=ROOT,
                              env=environment, capture_output=True, text=True)  # fmt: skip
    finally:
        docker("volume", "rm", "--force", "heart-readme_artifacts")
    assert done.returncode == 0, done.stdout + done.stderr
    results = [
        json.loads(line.removeprefix(RESULT_MARKER)) for line in done.stdout.splitlines() if line.startswith(RESULT_MARKER)
    ]
    assert [(r["stage"], r["rows"]["out"], r["image"]) for r in results] == [
        ("extract", 303, inspect("heart/extract:dev")["Id"]),
        ("transform", 303, "working tree"),
    ]
    assert '"outcome": "done"' in done.stdout and "extract.py" in done.stdout
    assert "docker run --rm --init --read-only" in done.stdout and "heart/load:dev --batch cleveland" in done.stdout


def test_every_command_and_path_that_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z-]+)[/%]*:.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for target in re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`[^`]+`|\$ .*", README))):
        assert target in targets, target
    for path in re.findall(r"\]\(([a-zA-Z0-9_./-]+)\)", README):
        assert (ROOT / path).exists(), path
