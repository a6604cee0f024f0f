"""transform: what each record means, and what is wrong with it."""

import csv

import pytest

from support import ACCOUNT_HEADER, HEART_HEADER, KAGGLE_HEADER, NOTHING_TO_DO, REFUSED, Delivery, Outcome, as_processes

COLUMNS = ["account_id", "age", "sex", *HEART_HEADER.split(";")[1:]]


def deliver(delivery: Delivery, *records: tuple[str | None, str | None]) -> Outcome:
    """Take records, each an account line and a heart line, through extract and transform."""
    accounts = [ACCOUNT_HEADER, *(a for a, _ in records if a is not None)]
    hearts = [HEART_HEADER, *(h for _, h in records if h is not None)]
    delivery.write("a", "\n".join(accounts) + "\n", "\n".join(hearts) + "\n")
    delivery.stage("extract", "a")
    return delivery.stage("transform", "a")


def rows(delivery: Delivery, outcome: Outcome, name: str) -> list[dict[str, str]]:
    """Return the rows of an output."""
    with delivery.output(outcome, name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_joins_and_writes_canonical_records(delivery):
    outcome = deliver(
        delivery, ("A2;41;0", "A2;2;130;0;?;;172;0;1.4;1;?;3;4"), ("A1 ; 63.0;1", " A1;1;145;233;1;2;150;0;2.3;3;0;6;0")
    )
    assert [list(r.values()) for r in rows(delivery, outcome, "records.csv")] == [
        ["A1", "63", "1", "1", "145", "233", "1", "2", "150", "0", "2.3", "3", "0", "6", "0", "3"],
        ["A2", "41", "0", "2", "130", "", "", "", "172", "0", "1.4", "1", "", "3", "1", "2"],
    ]
    assert outcome.result and outcome.result["metrics"]["notes"] == {"chol 0 taken for not measured": 1}


def test_a_person_without_diagnosis_is_kept(delivery):
    outcome = deliver(delivery, ("A1;63;1", "A1;1;145;233;1;2;150;0;2.3;3;0;6;?"))
    assert rows(delivery, outcome, "records.csv")[0]["target"] == ""
    assert outcome.result and outcome.result["metrics"]["notes"] == {"undiagnosed": 1}


WRONG = {
    "text for a number": ("chol", "high", "is not a number"),
    "not a number": ("chol", "nan", "is not a number"),
    "infinite": ("oldpeak", "inf", "is not a number"),
    "very large": ("chol", "1e308", "is outside 50 to 1000 mg/dl"),
    "overflowing": ("chol", "1e999", "is not a number"),
    "decimal comma": ("oldpeak", "2,3", "decimal comma"),
    "underscore": ("chol", "2_3_3", "is not a number"),
    "hexadecimal": ("chol", "0xE9", "is not a number"),
    "formula": ("chol", "=1+1", "is not a number"),
    "SQL": ("chol", "1' OR 1=1 --", "is not a number"),
    "fraction": ("thalach", "150.5", "is not a whole number"),
    "pressure too low": ("trestbps", "12", "is outside 50 to 300 mm Hg"),
    "pulse too high": ("thalach", "900", "is outside 30 to 250 bpm"),
    "unknown code": ("cp", "7", "is none of the codes 1, 2, 3, 4"),
    "code as text": ("thal", "normal", "is not a number"),
    "unknown diagnosis": ("target", "9", "is none of the codes 0, 1, 2, 3, 4"),
    "negative age": ("age", "-3", "is outside 0 to 120 years"),
    "age in months": ("age", "756", "is outside 0 to 120 years"),
    "unknown sex": ("sex", "M", "is not a number"),
    "odd account id": ("account_id", "=cmd()", "is no account_id"),
    "long account id": ("account_id", "x" * 65, "is no account_id"),
}


@as_processes
@pytest.mark.parametrize("kind", WRONG)
def test_rejects_a_wrong_value_with_column_reason_and_text(delivery, kind):
    column, value, reason = WRONG[kind]
    record = dict(
        zip(COLUMNS, ["A1", "63", "1", "1", "145", "233", "1", "2", "150", "0", "2.3", "3", "0", "6", "0"], strict=True)
    ) | {column: value}
    account = ";".join(record[c] for c in ACCOUNT_HEADER.split(";"))
    heart = ";".join(record[c] for c in HEART_HEADER.split(";"))
    outcome = deliver(delivery, ("A2;41;0", "A2;2;130;204;0;2;172;0;1.4;1;0;3;0"), (account, heart))
    assert outcome.rows == {"in": 2, "out": 1, "rejected": 1, "duplicate": 0}
    (row,) = rows(delivery, outcome, "quarantine.csv")
    assert (row["file"], row["line"], row["column"], row["raw"]) == ("heart_raw.csv", "3", column, f"{heart}\n{account}")
    assert reason in row["reason"]


def test_names_everything_that_is_wrong_at_once(delivery):
    outcome = deliver(delivery, ("A1;630;1", "A1;9;145;x;1;2;150;0;2.3;3;0;6;0"))
    (row,) = rows(delivery, outcome, "quarantine.csv")
    assert row["column"] == "age,cp,chol"
    assert row["reason"].count(";") == 2


HEART_1 = "A1;1;145;233;1;2;150;0;2.3;3;0;6;0"
HEART_1_OTHER = "A1;1;145;234;1;2;150;0;2.3;3;0;6;0"
NO_ID = ";1;145;233;1;2;150;0;2.3;3;0;6;0"
CASES: dict[str, tuple[list[tuple[str | None, str | None]], tuple[int, ...], list[str]]] = {
    "the same line again": ([("A1;63;1", HEART_1), (None, HEART_1)], (2, 1, 0, 1), []),
    "the same account again": ([("A1;63;1", HEART_1), ("A1;63;1", None)], (2, 1, 0, 1), []),
    "two versions of one record": ([("A1;63;1", HEART_1), (None, HEART_1_OTHER)], (2, 0, 2, 0), ["with different values"] * 2),
    "two versions of one account": ([("A1;63;1", HEART_1), ("A1;36;1", None)], (2, 0, 2, 0), ["different values"] * 2),
    "record without account": (
        [("A1;63;1", HEART_1), (None, HEART_1.replace("A1", "A2"))],
        (2, 1, 1, 0),
        ["no account has this"],
    ),
    "account without record": ([("A1;63;1", HEART_1), ("A2;63;1", None)], (2, 1, 1, 0), ["no heart record has this"]),
    "no account id": ([("A1;63;1", HEART_1), (";63;1", NO_ID)], (3, 1, 2, 0), ["account_id is missing"] * 2),
    "nothing fits": ([("B1;63;1", HEART_1)], (2, 0, 2, 0), ["no heart record has this", "no account has this"]),
    "lower case is another id": ([("A1;63;1", HEART_1), ("a1;63;1", HEART_1.replace("A1", "a1"))], (2, 2, 0, 0), []),
}


@as_processes
@pytest.mark.parametrize("case", CASES)
def test_every_line_is_loaded_or_rejected_or_named_as_a_duplicate(delivery, case):
    records, counts, reasons = CASES[case]
    outcome = deliver(delivery, *records)
    assert tuple(outcome.rows.values()) == counts
    assert len(rows(delivery, outcome, "records.csv")) == counts[1]
    quarantine = rows(delivery, outcome, "quarantine.csv")
    assert len(quarantine) == len(reasons)
    assert all(part in row["reason"] for part, row in zip(reasons, quarantine, strict=True))
    duplicates = rows(delivery, outcome, "duplicates.csv")
    assert len(duplicates) == counts[3]
    assert all(int(row["same_as_line"]) < int(row["line"]) for row in duplicates)


KAGGLE = "63,1,3,145,233,1,0,150,0,2.3,0,0,1,1"


def test_kaggle_codes_become_canonical_and_its_target_is_turned(delivery):
    delivery.dialect = "kaggle"
    delivery.write_kaggle("heart", f"{KAGGLE_HEADER}\n{KAGGLE}\n{KAGGLE}\n41,0,0,130,204,0,1,172,0,1.4,2,4,0,0\n")
    delivery.stage("extract", "heart")
    outcome = delivery.stage("transform", "heart")
    assert outcome.rows == {"in": 3, "out": 2, "rejected": 0, "duplicate": 1}
    first, second = rows(delivery, outcome, "records.csv")
    assert list(first.values())[1:] == ["63", "1", "1", "145", "233", "1", "2", "150", "0", "2.3", "3", "0", "6", "0", "2"]
    assert list(second.values())[1:] == ["41", "0", "4", "130", "204", "0", "0", "172", "0", "1.4", "1", "", "", "1", "4"]
    assert first["account_id"].startswith("KAG-") and first["account_id"] != second["account_id"]


def test_one_kaggle_person_with_two_diagnoses_is_rejected(delivery):
    delivery.dialect = "kaggle"
    delivery.write_kaggle("heart", f"{KAGGLE_HEADER}\n{KAGGLE}\n{KAGGLE[:-1]}0\n")
    delivery.stage("extract", "heart")
    assert delivery.stage("transform", "heart").rows == {"in": 2, "out": 0, "rejected": 2, "duplicate": 0}


def test_refuses_codes_of_the_other_dialect_and_names_the_option(delivery):
    delivery.write("a", f"{ACCOUNT_HEADER}\nA1;63;1\n", f"{HEART_HEADER}\nA1;0;145;233;1;0;150;0;2.3;0;4;2;1\n")
    delivery.stage("extract", "a")
    error = delivery.stage("transform", "a", expect=REFUSED).error
    assert "heart_raw.csv" in error and "line 2" in error and "--dialect kaggle" in error

    delivery.dialect = "kaggle"
    delivery.write_kaggle("heart", f"{KAGGLE_HEADER}\n63,1,4,145,233,1,0,150,0,2.3,3,0,7,1\n")
    delivery.stage("extract", "heart")
    assert "--dialect uci" in delivery.stage("transform", "heart", expect=REFUSED).error


def test_a_typing_error_is_no_other_dialect(delivery):
    good = [(f"A{i};63;1", f"A{i};4;145;233;1;2;150;0;2.3;3;0;7;1") for i in range(5)]
    outcome = deliver(delivery, *good, ("B1;63;1", "B1;0;145;233;1;2;150;0;2.3;0;4;2;1"))
    assert outcome.rows == {"in": 6, "out": 5, "rejected": 1, "duplicate": 0}


def test_needs_extract_first_and_refuses_what_was_altered_since(delivery):
    assert "run extract first" in delivery.stage("transform", "a", expect=REFUSED).error
    deliver(delivery, ("A1;63;1", HEART_1))
    path = delivery.artifacts / "run-1/extract/a/heart.csv"
    path.write_text(path.read_text().replace("233", "234"))
    assert "altered or cut short" in delivery.stage("transform", "a", expect=REFUSED).error
    # Running extract again notices that too, and mends it.
    delivery.stage("extract", "a")
    delivery.stage("transform", "a", expect=NOTHING_TO_DO)
    path.unlink()
    assert "missing" in delivery.stage("transform", "a", expect=REFUSED).error


def test_unchanged_content_is_skipped_and_the_same_output_comes_again(delivery):
    first = deliver(delivery, ("A1;63;1", HEART_1))
    delivery.stage("transform", "a", expect=NOTHING_TO_DO)
    again = delivery.stage("transform", "a", "--force")
    assert first.result and again.result
    assert [o["sha256"] for o in first.result["outputs"]] == [o["sha256"] for o in again.result["outputs"]]
    assert not [p for p in delivery.artifacts.rglob(".*") if p.name != ".latest"], "nothing temporary is left"
