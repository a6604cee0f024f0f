"""The contract in dags/stages.py, the folders of images/, the tests, and what each stage says of itself agree."""

import ast
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from support import ENVIRONMENTS, ROOT, STAGES, USAGE, run_stage

# Servers, what images share, and stand-ins for public images are no stages.
NOT_STAGES = {"base", "bases", "ml", "airflow", "mlflow"}


def complaints(root: Path, names: Iterable[str]) -> list[str]:
    """Return what is missing for each stage to be a folder of fixed shape, an entry in the contract, and a test."""
    folders = {path.name for path in (root / "images").iterdir() if path.is_dir()} - NOT_STAGES
    found = [f"images/{name} has no entry in dags/stages.py" for name in sorted(folders - set(names))]
    for name in names:
        if name not in folders:
            found.append(f"dags/stages.py names {name}, but there is no folder images/{name}")
            continue
        files = (f"{name}.py", "Dockerfile", "requirements.in", "requirements.txt")
        paths = (*(f"images/{name}/{file}" for file in files), f"tests/images/test_{name}.py")
        found += [f"{path} is missing" for path in paths if not (root / path).is_file()]
    return found


def test_a_stage_is_a_folder_of_fixed_shape_an_entry_in_the_contract_and_a_test():
    assert complaints(ROOT, STAGES) == []
    for name, stage in STAGES.items():
        for upstream in stage.upstream:
            assert list(STAGES).index(upstream) < list(STAGES).index(name)
            assert STAGES[upstream].per_batch == stage.per_batch


def test_what_a_new_stage_lacks_is_named(tmp_path):
    for path in ("images/clean/clean.py", "images/clean/Dockerfile", "images/base/stage.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert complaints(tmp_path, []) == ["images/clean has no entry in dags/stages.py"]
    assert complaints(tmp_path, ["clean", "report"]) == [
        "images/clean/requirements.in is missing",
        "images/clean/requirements.txt is missing",
        "tests/images/test_clean.py is missing",
        "dags/stages.py names report, but there is no folder images/report",
    ]


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


LOCKS = [
    *ROOT.glob("*/requirements.txt"),
    *ROOT.glob("images/**/requirements.txt"),
    *ROOT.glob("*/uv.txt"),
    ROOT / "images/bundle.txt",
]


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
              if line and not line.startswith(("#", "-"))}  # fmt: skip
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


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_networks_of_the_services_that_it_may_see(name):
    services = {"PGHOST": "warehouse", "MLFLOW_TRACKING_URI": "mlflow"}
    assert set(STAGES[name].networks) == {services[v] for v in STAGES[name].variables if v in services}
