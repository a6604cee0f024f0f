"""The contract in dags/stages.py, the folders of images/, the tests, and what each stage says of itself agree."""

import ast
import json
import re
import shutil
import subprocess

import pytest

from runners import HARDENED, docker, inspect
from support import ENVIRONMENTS, ROOT, STAGES, USAGE, run_stage

# Servers, shared modules and stand-ins for public images are no stages.
NOT_STAGES = {"base", "bases", "airflow", "mlflow"}
FOLDERS = {path.name for path in (ROOT / "images").iterdir() if path.is_dir()} - NOT_STAGES


@pytest.mark.parametrize("name", sorted(FOLDERS | set(STAGES)))
def test_a_stage_is_a_folder_of_fixed_shape_an_entry_in_the_contract_and_a_test(name):
    assert name in STAGES, f"images/{name} has no entry in dags/stages.py"
    assert name in FOLDERS, f"dags/stages.py names {name}, but there is no folder images/{name}"
    files = (f"{name}.py", "Dockerfile", "requirements.in", "requirements.txt")
    for path in (*(f"images/{name}/{file}" for file in files), f"tests/images/test_{name}.py"):
        assert (ROOT / path).is_file(), f"{path} is missing"
    for upstream in STAGES[name].upstream:
        assert list(STAGES).index(upstream) < list(STAGES).index(name)
        assert STAGES[upstream].per_batch == STAGES[name].per_batch


@pytest.mark.parametrize("stage", STAGES)
def test_help_needs_nothing_and_names_every_option_variable_and_exit_code(stage, runner):
    done = run_stage(stage, "--help", runner=runner)
    assert not done.stderr
    text = " ".join(done.stdout.split())
    for name in STAGES[stage].variables:
        assert name in text, f"{stage} --help does not name {name}, which dags/stages.py declares"
    declared = set(STAGES[stage].variables)
    named = set(re.findall(r"\b(?:HEART|PG|MLFLOW)[A-Z_]+\b", text))
    assert named <= declared, f"dags/stages.py does not declare {named - declared} of {stage}"
    for code in ("0 done", "2 wrong usage", "65 input refused", "75 a dependency", "99 nothing to do"):
        assert code in text


@pytest.mark.parametrize("stage", STAGES)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(stage, tmp_path):
    assert "No such option" in run_stage(stage, "--nonsense", expect=USAGE).stderr
    assert "HEART_ARTIFACTS" in run_stage(stage, expect=USAGE, HEART_BATCH="a", HEART_DATA=tmp_path).stderr


@pytest.mark.parametrize("stage", STAGES)
def test_an_environment_holds_only_what_its_lock_names(stage):
    lock = (ROOT / "images" / stage / "requirements.txt").read_text()
    locked = {normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, flags=re.MULTILINE)}
    program = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    python = str(ENVIRONMENTS / stage / "bin" / "python")
    there = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {normal(name) for name in there} <= locked


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


LOCKS = [*ROOT.glob("*/requirements.txt"), *ROOT.glob("images/*/requirements.txt"), ROOT / "embedded/uv.txt"]


@pytest.mark.parametrize("path", sorted(path.relative_to(ROOT).as_posix() for path in LOCKS))
def test_locks_pin_exactly_with_hashes_and_name_no_address(path):
    text = (ROOT / path).read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert requirements
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z0-9,-]+\])?==[^ ]+", requirement), requirement[:80]
        assert "--hash=sha256:" in requirement, requirement[:80]
    wanted = {normal(re.split(r"[=<>~\[ ]", line)[0]) for line in (ROOT / path).with_suffix(".in").read_text().splitlines()
              if line and not line.startswith(("#", "-r"))}  # fmt: skip
    assert wanted <= {normal(r.split("==")[0].split("[")[0]) for r in requirements}, "run make lock"


def test_the_contract_and_the_shared_module_need_only_what_they_promise():
    import sys

    for path, allowed in (("dags/stages.py", set()), ("images/base/stage.py", {"click"})):
        tree = ast.parse((ROOT / path).read_text())
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert {name.split(".")[0] for name in imported} <= allowed | set(sys.stdlib_module_names)


def test_both_sides_agree_on_the_marker_and_the_exit_codes():
    import stages

    text = (ROOT / "images/base/stage.py").read_text()
    assert f'RESULT_MARKER = "{stages.RESULT_MARKER}"' in text
    for name, code in (("USAGE", stages.USAGE), ("REFUSED", stages.REFUSED), ("UNAVAILABLE", stages.UNAVAILABLE),
                       ("NOTHING_TO_DO", stages.NOTHING_TO_DO)):  # fmt: skip
        assert f"EXIT_{name} = {code} " in text + " "


LABELS = ("title", "description", "version", "revision", "source", "licenses")
LOOK_INSIDE = """
import importlib.metadata, importlib.util, json, os, pathlib, shutil
folders = ["/heart", "/packages", "/stage"]
sources = [p for f in folders for p in pathlib.Path(f).rglob("*.py")]
print(json.dumps({
    "user": os.getuid(),
    "packages": [d.name for d in importlib.metadata.distributions(path=["/packages"])],
    "importable": [m for m in ("pip", "uv", "ensurepip", "setuptools", "wheel") if importlib.util.find_spec(m)],
    "tools": [t for t in ("pip", "pip3", "uv", "gcc", "cc", "make", "git", "curl") if shutil.which(t)],
    "writable": [f for f in [*folders, "/usr", "/etc"] if os.access(f, os.W_OK)],
    "uncompiled": [str(p) for p in sources if p.parts[1] != "packages"
                   and not pathlib.Path(importlib.util.cache_from_source(str(p))).exists()],
    "compiled share": sum(pathlib.Path(importlib.util.cache_from_source(str(p))).exists() for p in sources) / len(sources),
}))
"""


@pytest.mark.docker
@pytest.mark.parametrize("image", [*STAGES, "mlflow"])
def test_an_image_holds_what_it_needs_and_nothing_else(image):
    config = inspect(f"heart/{image}:dev")["Config"]
    assert config["User"] not in ("", "0", "root", "0:0")
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"][0] == "python", "exec form: the stage itself is process 1 and gets the signals"
    assert not config.get("Cmd")
    assert all(config["Labels"].get(f"org.opencontainers.image.{label}") for label in LABELS), config["Labels"]
    assert bool(config.get("Healthcheck")) == (image not in STAGES), "servers have a health check, stages end"

    inside = json.loads(
        docker("run", "--rm", "--network=none", *HARDENED, "--entrypoint=python", f"heart/{image}:dev", "-c", LOOK_INSIDE)
    )
    lock = (ROOT / "images" / image / "requirements.txt").read_text()
    locked = {normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, flags=re.MULTILINE)}
    assert {normal(name) for name in inside["packages"]} <= locked
    assert inside["user"] == 10001
    assert inside["importable"] == inside["tools"] == inside["writable"] == inside["uncompiled"] == []
    assert inside["compiled share"] > 0.95, "some packages hold templates that are no Python"


@pytest.mark.docker
@pytest.mark.parametrize("image", [*STAGES, "mlflow"])
def test_an_image_holds_no_credential(image):
    text = docker("history", "--no-trunc", "--format={{.CreatedBy}}", f"heart/{image}:dev")
    text += json.dumps(inspect(f"heart/{image}:dev")["Config"])
    assert not re.search(r"(?i)passw|secret|token|api[_-]?key|://[^/ ]*:[^/ ]*@", text)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_networks_of_the_services_that_it_may_see(name):
    services = {"PGHOST": "warehouse", "MLFLOW_TRACKING_URI": "mlflow"}
    assert set(STAGES[name].networks) == {services[v] for v in STAGES[name].variables if v in services}


@pytest.mark.docker
def test_a_change_of_code_touches_one_layer(tmp_path):
    """Two builds that differ in a line of code share every layer but the last."""
    shutil.copytree(ROOT / "images" / "load", tmp_path / "load")
    before = inspect("heart/load:dev")["RootFS"]["Layers"]
    with (tmp_path / "load" / "load.py").open("a") as file:
        file.write("# another line\n")
    docker("buildx", "build", "--quiet", "--load", "--tag=heart-test/load:dev", str(tmp_path / "load"))
    try:
        after = inspect("heart-test/load:dev")["RootFS"]["Layers"]
    finally:
        docker("rmi", "heart-test/load:dev")
    assert before[:-1] == after[:-1] and before[-1] != after[-1]
