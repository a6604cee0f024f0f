"""The committed data are what their notes say."""

import csv
import re
from collections import Counter

import pytest

from support import HEART_HEADER, KAGGLE_HEADER, ROOT

DATA = ROOT / "data"
# Batch -> people, people with disease (num above 0), as UCI's own description of the data set gives them.
SITES = {"cleveland": (303, 139), "hungary": (294, 106), "switzerland": (123, 115), "va_long_beach": (200, 149)}
ALLOWED = {
    "cp": "1 2 3 4", "fbs": "0 1 ?", "restecg": "0 1 2 ?", "exang": "0 1 ?", "slope": "1 2 3 ?", "ca": "0 1 2 3 ?",
    "thal": "3 6 7 ?", "target": "0 1 2 3 4",
}  # fmt: skip


def read(path: str) -> list[dict[str, str]]:
    """Return the rows of a delivered file."""
    with (DATA / path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=";" if "raw" in path else ","))


@pytest.mark.parametrize("batch", SITES)
def test_a_batch_is_a_hospital_as_uci_documents_it(batch):
    accounts, hearts = read(f"{batch}/account_raw.csv"), read(f"{batch}/heart_raw.csv")
    assert list(accounts[0]) == ["account_id", "age", "sex"] and list(hearts[0]) == HEART_HEADER.split(";")
    assert [a["account_id"] for a in accounts] == [h["account_id"] for h in hearts]
    assert len({a["account_id"] for a in accounts}) == len(accounts)
    assert (len(hearts), sum(h["target"] != "0" for h in hearts)) == SITES[batch]
    for column, codes in ALLOWED.items():
        assert {h[column] for h in hearts} <= set(codes.split()), column


def test_the_known_traps_are_in_the_data():
    assert Counter(h["chol"] for h in read("switzerland/heart_raw.csv"))["0"] == 123
    assert Counter(h["chol"] for h in read("va_long_beach/heart_raw.csv"))["0"] == 49
    assert Counter(h["trestbps"] for h in read("va_long_beach/heart_raw.csv"))["0"] == 1
    assert Counter(h["ca"] for h in read("hungary/heart_raw.csv"))["?"] == 291
    kaggle = [tuple(row.values()) for row in read("kaggle_heart.csv")]
    assert (len(kaggle), len(set(kaggle))) == (303, 302)
    assert ",".join(read("kaggle_heart.csv")[0]) == KAGGLE_HEADER


def test_the_code_tables_of_the_readme_are_those_of_the_program():
    """Each row of the README's table of Kaggle's codes is found in schema.sql, and the other way round."""
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    schema = (ROOT / "images/transform/schema.sql").read_text(encoding="utf-8")
    documented = {
        (column, kaggle): uci
        for column, codes in re.findall(r"^\| `(\w+)` \| ((?:\S+ → \S+(?:, )?)+) \|$", readme, flags=re.MULTILINE)
        for kaggle, uci in re.findall(r"(\d) → (\d|missing)", codes)
    }
    programmed = {
        (column, kaggle): "missing" if uci == "NULL" else uci
        for column, codes in re.findall(
            r"MACRO (\w+)_codes\(dialect\) AS\s+CASE .*?WHEN 'kaggle' THEN MAP \{(.*?)\}", schema, flags=re.DOTALL
        )
        for kaggle, uci in re.findall(r"(\d): (\d|NULL)", codes)
    }
    assert documented == programmed and len(programmed) == 21
