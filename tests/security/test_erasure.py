"""A person is forgotten everywhere with one command, and what was set aside finds its way back."""

from pathlib import Path

import pytest
from test_access import search

from support import ACCOUNT_HEADER, HEART_HEADER

pytestmark = pytest.mark.docker
SOUND = ";1;145;233;1;2;150;0;2.3;3;0;6;0"


def test_set_aside_listed_corrected_loaded_and_forgotten(stack, first):
    folder = Path(stack.environment["HEART_DATA"]) / "olomouc"
    folder.mkdir()
    people = {"OLO-1": SOUND, "OLO-2": SOUND.replace(";145;", ";1450;"), "OLO-3": SOUND + ";;"}
    folder.joinpath("account_raw.csv").write_text("\n".join([ACCOUNT_HEADER, *(f"{name};63;1" for name in people)]) + "\n")

    def deliver() -> None:
        folder.joinpath("heart_raw.csv").write_text("\n".join([HEART_HEADER, *(n + v for n, v in people.items())]) + "\n")
        assert stack.wait_for_run(stack.trigger("etl_dag", batch=["olomouc"])) == "success"

    def loaded() -> list[list[str]]:
        return stack.query("SELECT account_id FROM heart_analysis.heart_fact WHERE account_id LIKE 'OLO-%' ORDER BY 1")

    deliver()
    listed = " ".join(stack.make("quarantine").stdout.split())
    assert loaded() == [["OLO-1"]]
    for where in ("heart_raw.csv | 3 | OLO-2 | trestbps", "heart_raw.csv | 4 |"):
        assert where in listed, listed
    people |= {"OLO-2": SOUND, "OLO-3": SOUND}
    deliver()
    assert loaded() == [["OLO-1"], ["OLO-2"], ["OLO-3"]] and "OLO" not in stack.make("quarantine").stdout

    refused = stack.make("erase", "ID=OLO-3")
    assert refused.returncode != 0 and "heart_raw.csv, line 4" in refused.stderr and len(loaded()) == 3
    (folder / "account_raw.csv").write_text(f"{ACCOUNT_HEADER}\nOLO-1;63;1\nOLO-2;63;1\n")
    (folder / "heart_raw.csv").write_text(f"{HEART_HEADER}\nOLO-1{SOUND}\nOLO-2{SOUND}\n")
    gone = stack.make("erase", "ID=OLO-3")
    assert gone.returncode == 0, gone.stderr
    # Two rows of the quarantine: of the first delivery, a heart line that was malformed and the account line without one.
    assert "1 rows  heart_fact" in gone.stdout and "quarantine" in gone.stdout
    assert loaded() == [["OLO-1"], ["OLO-2"]]
    assert "OLO-3" not in stack.compose("exec", "-T", "postgres", "pg_dump", "-U", "postgres", "heart")
    assert search(stack, ["artifacts", "mlflow", "airflow_logs"], {"person": "OLO-3"}) == {}
    assert "nobody" in stack.make("erase", "ID=OLO-3").stdout
    deliver_again = stack.wait_for_run(stack.trigger("etl_dag", batch=["olomouc"]))
    assert deliver_again == "success" and loaded() == [["OLO-1"], ["OLO-2"]], "the next run finds what it needs"
