"""The benchmark works; what it measures is no matter of a test."""

import json
import subprocess

import pytest

from support import ROOT, base_environment


@pytest.mark.docker
def test_the_benchmark_measures_compares_and_keeps_its_figures():
    page = (ROOT / "docs/performance.md").read_text()
    done = subprocess.run(["make", "bench", "QUICK=1"], cwd=ROOT, env=base_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((ROOT / ".run/bench.json").read_text())
    figures = {figure["name"]: figure for figure in kept["figures"]}
    assert figures["size: extract"]["met"] is True and figures["size: extract"]["value"] > 1
    assert figures["303 records: extract"]["value"] > figures["303 records: extract"]["difference"] > 0
    assert figures["2 000 records: load"]["ratio"] > 0 and figures["2 000 records: all three"]["ratio"] > 0
    assert [name for name in figures if name not in done.stdout] == []
    assert (ROOT / "docs/performance.md").read_text() == page
