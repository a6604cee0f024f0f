"""What is known about the packages that the images are made of."""

import csv
import subprocess

import pytest

from support import ROOT, base_environment


@pytest.mark.docker
def test_every_package_names_its_licence_and_none_has_a_known_vulnerability():
    done = subprocess.run(["make", "audit"], cwd=ROOT, env=base_environment(), capture_output=True, text=True)
    with (ROOT / ".run" / "licences.csv").open(newline="", encoding="utf-8") as file:
        packages = list(csv.DictReader(file))
    assert {row["package"] for row in packages} >= {"apache-airflow", "mlflow", "scikit-learn", "duckdb", "psycopg2-binary"}
    assert not [row for row in packages if not row["licence"] or "AFFERO" in row["licence"].upper()]
    # Where the database can't be reached, it says so instead of looking well.
    assert done.returncode == 0 or "NOT AUDITED: the database of vulnerabilities can't be reached" in done.stdout, done.stdout
