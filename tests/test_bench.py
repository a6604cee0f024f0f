"""The benchmark works; what it measures is no matter of a test."""

import json
import subprocess

import pytest

from runners import docker
from support import ROOT, base_environment


@pytest.mark.docker
def test_the_benchmark_measures_compares_and_keeps_its_figures():
    page = (ROOT / "docs/performance.md").read_text()
    done = subprocess.run(["make", "bench", "QUICK=1"], cwd=ROOT, env=base_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((ROOT / ".run/bench-quick.json").read_text())
    figures = {figure["name"]: figure for figure in kept["figures"]}
    assert figures["size: extract"]["met"] is True and figures["size: extract"]["value"] > 1
    assert figures["303 records: extract"]["value"] > figures["303 records: extract"]["difference"] > 0
    compared = {(figure["name"], figure["compared_with"]) for figure in kept["figures"] if (figure["ratio"] or 0) > 0}
    assert compared > {
        ("2 000 records: load", r"psql \copy of the ready rows"), ("2 000 records: all three", "read_csv, merge, to_sql"),
        ("2 000 records: train", "HistGradientBoostingClassifier.fit"), ("2 000 records: predict", "predict_proba"),
        ("2 000 records: transform", "10 × 200 records"), ("four batches of 500 records", "one of them"),
    }  # fmt: skip
    assert (
        figures["2 000 records: transform, most memory"]["value"] > figures["2 000 records: extract, most memory"]["value"] > 10
    )
    for peer in ("Kubeflow Pipelines' local Docker runner", "Dagster's Docker pipes"):
        assert figures[f"a stage beyond its own work: {peer}"]["value"] > 0
    assert {"docker", "postgresql", "kfp", "dagster"} < set(kept["machine"]["versions"])
    assert [name for name in figures if name not in done.stdout] == []
    assert (ROOT / "docs/performance.md").read_text() == page
    assert docker("ps", "--all", "--quiet", "--filter=label=heart.bench") == "", "the other orchestrators' containers are removed"
