"""`make bundle` is all that a machine with an engine and no network needs, and says when it is not what was bundled."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from engines import engine_without_network
from runners import wait_until
from stacks import Stack, content, load_undisturbed, locked, waits
from support import RESULT_MARKER, ROOT, STAGES, base_environment

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the bundle of this checkout and unpack it."""
    done = subprocess.run(["make", "bundle"], cwd=ROOT, env=base_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    archive = ROOT / re.findall(r"^(\.run/heart-pipeline-\S+\.tar): ", done.stdout, flags=re.MULTILINE)[0]
    folder = tmp_path_factory.mktemp("bundle")
    subprocess.run(["tar", "xf", str(archive)], cwd=folder, check=True)
    archive.unlink()
    (unpacked,) = folder.iterdir()
    return unpacked


def test_nothing_secret_and_nothing_generated_is_in_it(bundle):
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert not [name for name in there if name.startswith((".git/", ".run/", ".credentials")) or name.endswith(".pyc")]
    assert {"docker-compose.yaml", "Makefile", "README.md", "sql/010_warehouse.sql", "data/cleveland/heart_raw.csv"} <= there


def test_a_machine_without_a_network_installs_it_brings_the_system_up_and_goes_down_in_a_run(bundle, postgres, tmp_path):
    assert os.geteuid() == 0, "a second engine needs root"
    with engine_without_network() as engine:

        def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
            command = ["unshare", "--net", "make", *arguments]
            done = subprocess.run(command, cwd=bundle, env=engine.environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            return done

        with pytest.raises(AssertionError):
            make("build-images")  # without the bundle nothing can be made there
        make("install-bundle")
        # PostgreSQL and MLflow are the stack's; the first two stages need nothing but their images.
        for stage in ("extract", "transform"):
            done = make(f"run/{stage}", "ARGS=--batch cleveland")
            (document,) = [line for line in done.stdout.splitlines() if line.startswith(RESULT_MARKER)]
            assert json.loads(document.removeprefix(RESULT_MARKER))["rows"]["out"] == 303

        engine.environment["COMPOSE_PROJECT_NAME"] = "heart"
        engine.environment["COMPOSE_FILE"] = f"docker-compose.yaml:{ROOT}/tests/faults/impatient.yaml"
        stack = Stack(engine.environment, bundle)
        make("up")
        # The machine goes down in the middle of a run.
        airflow = ("exec", "-T", "airflow-scheduler", "airflow", "dags")
        stack.compose(*airflow, "pause", "--yes", "ml_dag")
        with locked(stack, "heart_fact"):
            stack.compose(*airflow, "trigger", "etl_dag", "--conf", '{"batch": ["cleveland"]}')
            wait_until(lambda: waits(stack, "load"), 1)
            engine.stop()
        engine.start()
        wait_until(lambda: set(stack.states().values()) == {"done", "healthy"}, 1)
        states = "SELECT state FROM dag_run WHERE dag_id = 'etl_dag'"
        wait_until(lambda: stack.query(states, "airflow") in ([["success"]], [["failed"]]), 1)
        assert stack.query(states, "airflow") == [["success"]]
        expected = load_undisturbed(tmp_path, ROOT / "data", postgres, "cleveland")
        assert content(stack.query, "cleveland") == expected and len(expected["heart_fact"]) == 303
        assert stack.query("SELECT rows_in, rows_loaded FROM heart_analysis.load_batch") == [["303", "303"]]
        make("down")


def test_what_was_altered_or_lost_on_the_way_is_named(bundle):
    def install() -> str:
        return subprocess.run(["make", "install-bundle"], cwd=bundle, capture_output=True, text=True).stderr

    file = bundle / "sql" / "010_warehouse.sql"
    content = file.read_text()
    file.write_text(content.replace("heart", "heard", 1))
    assert "sql/010_warehouse.sql is not what was bundled; copy the bundle again" in install()
    file.unlink()
    assert "sql/010_warehouse.sql is missing; unpack the bundle again" in install()
    file.write_text(content)


@pytest.mark.parametrize("image", STAGES)
def test_an_sbom_names_every_package_of_an_image_with_its_version(bundle, image):
    document = json.loads((bundle / "bundle" / "sbom" / f"heart-{image}.cdx.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    there = {component["purl"].split("?")[0] for component in document["components"] if "purl" in component}
    lock = (ROOT / "images" / image / "requirements.txt").read_text()
    wanted = re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", lock, flags=re.MULTILINE)  # what every platform needs
    assert {f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}" for name, version in wanted} <= there
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in there)
