"""extract: every line is kept untouched or set aside with its reason; what can't be read at all is refused."""

import csv
import json

import pytest

from support import ACCOUNT_HEADER, HEART_HEADER, KAGGLE_HEADER, NOTHING_TO_DO, REFUSED, USAGE, Delivery, Outcome, as_processes

ACCOUNTS = f"{ACCOUNT_HEADER}\nA1;63;1\nA2;41;0\n"
HEARTS = f"{HEART_HEADER}\nA1;1;145;233;1;2;150;0;2.3;3;0;6;0\nA2;2;130;204;0;2;172;0;1.4;1;0;3;1\n"


def quarantined(delivery: Delivery, outcome: Outcome) -> list[dict[str, str]]:
    with delivery.output(outcome, "quarantine.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@as_processes
@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_keeps_sound_lines_whatever_the_delimiter_and_line_ends(delivery, delimiter, ending, mark):
    accounts, hearts = (mark + t.replace(";", delimiter).replace("\n", ending).encode() for t in (ACCOUNTS, HEARTS))
    delivery.write("a", accounts, hearts)
    outcome = delivery.stage("extract", "a")
    assert outcome.rows == {"in": 2, "out": 2, "rejected": 0, "duplicate": 0}
    lines = delivery.output(outcome, "heart.csv").read_text().splitlines()
    assert [line.split(delimiter, 1) for line in lines[1:]] == [
        ["2", "A1;1;145;233;1;2;150;0;2.3;3;0;6;0".replace(";", delimiter)],
        ["3", "A2;2;130;204;0;2;172;0;1.4;1;0;3;1".replace(";", delimiter)],
    ]


MALFORMED = {
    "too few fields": (b"A3;1;2", "3 fields where 13 are expected"),
    "too many fields": (b"A3" + b";1" * 20, "21 fields where 13 are expected"),
    "open quote": (b'"A3;1;145;233;1;2;150;0;2.3;3;0;6;0', "bad quoting"),
    "text after a quote": (b'"A3"x;1;145;233;1;2;150;0;2.3;3;0;6;0', "bad quoting"),
    "Latin-1": (b"A\xe9;1;145;233;1;2;150;0;2.3;3;0;6;0", "not UTF-8 at position 2"),
    "NUL byte": (b"A3;1;\x00145;233;1;2;150;0;2.3;3;0;6;0", "NUL byte at position 6"),
    "control character": (b"A3;1;\x07145;233;1;2;150;0;2.3;3;0;6;0", "control character 0x07"),
    "header again": (HEART_HEADER.encode(), "header repeated"),
    "very long": (b"A3;" + b"1" * 3_000_000, "3000004 bytes"),
    "very long at its end": (b"A3;1;145;233;1;2;150;0;2.3;3;0;6;0" + b" " * 70_000 + b";9", "70037 bytes"),
}


@as_processes
@pytest.mark.parametrize("blank", ["", "  ", "\t" * 12, " \t" * 12])
def test_blank_lines_are_no_rows(delivery, blank):
    accounts, hearts = ((text + "\n").replace(";", "\t") + blank + "\n" for text in (ACCOUNTS, HEARTS))
    delivery.write("a", accounts, hearts)
    assert delivery.stage("extract", "a").rows == {"in": 2, "out": 2, "rejected": 0, "duplicate": 0}


@as_processes
@pytest.mark.parametrize("kind", MALFORMED)
def test_sets_a_malformed_line_aside_with_its_place_reason_and_text(delivery, kind):
    line, reason = MALFORMED[kind]
    delivery.write("a", ACCOUNTS, HEARTS.encode() + line + b"\n" + b"A4;1;145;233;1;2;150;0;2.3;3;0;6;0\n")
    outcome = delivery.stage("extract", "a")
    assert outcome.rows == {"in": 4, "out": 3, "rejected": 1, "duplicate": 0}
    (row,) = quarantined(delivery, outcome)
    assert (row["file"], row["line"]) == ("heart_raw.csv", "4")
    assert reason in row["reason"]
    assert row["raw"].startswith(line.split(b";")[0].decode(errors="backslashreplace"))


REFUSALS = {
    "no batch": (None, None, "account_raw.csv: no such file"),
    "one file missing": (ACCOUNTS, None, "heart_raw.csv: no such file; there are account_raw.csv"),
    "empty file": (ACCOUNTS, "", "line 1: is empty"),
    "header only": (ACCOUNTS, HEART_HEADER + "\n", "has a header and no rows"),
    "column missing": (ACCOUNTS, HEARTS.replace(";thal;", ";thalium;"), "column thal missing"),
    "column doubled": (ACCOUNTS, HEARTS.replace("account_id", "account_id;cp", 1), "cp stands there more than once"),
    "column unknown": ("account_id;age;sex;name\nA1;63;1;Jo\n", HEARTS, "column 'name' is not known"),
    "no header": ("A1;63;1\n", HEARTS, "columns account_id, age, sex missing"),
    "other delimiter": (ACCOUNTS.replace(";", "|"), HEARTS, "missing"),
    "UTF-16": (ACCOUNTS.encode("utf-16"), HEARTS, "UTF-16"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\0" * 30, HEARTS, "gzip"),
    "Excel": (b"PK\x03\x04" + b"\0" * 30, HEARTS, "Excel"),
    "PDF": (b"%PDF-1.7\n", HEARTS, "PDF"),
    "binary": (bytes(range(256)), HEARTS, "line 1"),
    "Kaggle's layout": (ACCOUNTS, KAGGLE_HEADER + "\n", "--dialect kaggle"),
}


@as_processes
@pytest.mark.parametrize("kind", REFUSALS)
def test_refuses_what_it_cannot_read_in_one_line_that_names_the_file(delivery, kind):
    accounts, hearts, message = REFUSALS[kind]
    delivery.write("a", accounts, hearts)
    outcome = delivery.stage("extract", "a", expect=REFUSED)
    assert message in outcome.error
    assert str(delivery.data) in outcome.error
    assert not list(delivery.artifacts.rglob("*.csv")), "a refused batch leaves nothing behind"


def test_points_to_the_other_dialect_where_a_single_file_was_delivered(delivery):
    (delivery.data / "a").mkdir(parents=True)
    (delivery.data / "a" / "heart.csv").write_text(KAGGLE_HEADER + "\n")
    assert "--dialect kaggle" in delivery.stage("extract", "a", expect=REFUSED).error


def test_reads_any_address_that_fsspec_opens(delivery):
    delivery.write("a", ACCOUNTS, HEARTS)
    outcome = delivery.stage("extract", "a", HEART_DATA=f"file://{delivery.data}")
    assert outcome.rows["out"] == 2


def test_unchanged_batch_is_skipped_and_keeps_its_outputs(delivery):
    delivery.write("a", ACCOUNTS, HEARTS)
    first = delivery.stage("extract", "a")
    delivery.run = "run-2"
    second = delivery.stage("extract", "a", expect=NOTHING_TO_DO)
    assert second.result and first.result
    assert (second.result["outcome"], second.result["outputs"]) == ("unchanged", first.result["outputs"])
    assert json.loads((delivery.artifacts / "run-2/extract/a/result.json").read_text()) == second.result
    delivery.stage("extract", "a", "--force")
    delivery.run = "run-3"
    delivery.stage("extract", "a", HEART_IMAGE="a newer one")
    delivery.write("a", ACCOUNTS, HEARTS + "\n")
    delivery.run = "run-4"
    delivery.stage("extract", "a", HEART_IMAGE="a newer one")


@as_processes
@pytest.mark.parametrize("name", ["../outside", "a/b", ".hidden", "", "a b", "x" * 300])
def test_a_name_never_leads_out_of_the_artifacts(delivery, name):
    delivery.stage("extract", name, expect=USAGE)
    delivery.stage("extract", "a", HEART_RUN=name or "/", expect=USAGE)


def test_memory_does_not_grow_with_a_line_that_never_ends(delivery):
    delivery.write("a", ACCOUNTS, HEARTS.encode() + b"x" * 100_000_000)
    outcome = delivery.stage("extract", "a")
    assert outcome.rows == {"in": 3, "out": 2, "rejected": 1, "duplicate": 0}
    assert delivery.output(outcome, "quarantine.csv").stat().st_size < 10_000
