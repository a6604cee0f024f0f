"""What README.md tells people to type works as it stands."""

import re
import subprocess

from support import NOTHING_TO_DO, ROOT, Warehouse, base_environment, make_warehouse

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_stages_run_alone_as_the_readme_says(postgres, mlflow, tmp_path):
    warehouse = Warehouse(make_warehouse(postgres))
    section = README.split("### Run one stage alone")[1].split("###")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) == 2
    script = "set -e\n" + blocks[0].replace("/tmp/heart", str(tmp_path)) + blocks[1].replace("stage predict", "")
    reach = warehouse.environment | {"MLFLOW_TRACKING_URI": mlflow}
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=base_environment() | reach, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    script = blocks[0].replace("/tmp/heart", str(tmp_path)).split("stage extract")[0] + "stage predict"
    last = subprocess.run(["bash", "-c", script], cwd=ROOT, env=base_environment() | reach, capture_output=True, text=True)
    assert last.returncode == NOTHING_TO_DO and "everyone has a diagnosis" in last.stderr
    assert warehouse.query("SELECT rows_loaded FROM heart_analysis.load_batch") == [(303,)]


def test_every_command_and_path_that_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z-]+)[/%]*:.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for target in re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`[^`]+`|\$ .*", README))):
        assert target in targets, target
    for path in re.findall(r"\]\(([a-zA-Z0-9_./-]+)\)", README):
        assert (ROOT / path).exists(), path
