"""Broken deliveries end as a refusal or in the quarantine, never in a traceback, and no line is lost."""

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import ACCOUNT_HEADER, DONE, HEART_HEADER, REFUSED, ROOT, Delivery, Outcome, as_processes

BROKEN = ROOT / "tests" / "broken"
with (BROKEN / "expected.csv").open(newline="") as file:
    EXPECTED = list(csv.DictReader(file, delimiter=";"))


def run_until_refused(delivery: Delivery, batch: str, stages: tuple[str, ...]) -> dict[str, Outcome]:
    """Run stages one after another up to one that refuses its input; any other end fails the test."""
    outcomes = {}
    for stage in stages:
        outcomes[stage] = delivery.stage(stage, batch, expect=(DONE, REFUSED))
        if outcomes[stage].code == REFUSED:
            break
    return outcomes


def test_there_are_enough_kinds():
    folders = {path.name for path in BROKEN.iterdir() if path.is_dir()}
    assert folders == {row["batch"] for row in EXPECTED} and len(folders) >= 25


@as_processes
@pytest.mark.parametrize("expected", EXPECTED, ids=lambda row: row["batch"])
def test_a_broken_delivery_is_refused_or_quarantined_with_its_reason(loading, warehouse, expected):
    batch = expected["batch"]
    loading.data.symlink_to(BROKEN)
    outcomes = run_until_refused(loading, batch, ("extract", "transform", "load"))
    last = outcomes[list(outcomes)[-1]]
    if expected["outcome"] == "refused":
        assert last.code == REFUSED
        assert expected["says"] in last.error
        assert warehouse.query("TABLE heart_analysis.warehouse_counts") == [(0, 0, 0, 0, 0)]
        return
    assert last.code == DONE
    rows = warehouse.query("SELECT file, line, reason, raw FROM heart_analysis.quarantine")
    assert any(expected["says"] in reason for _, _, reason, _ in rows)
    assert all(file and line > 1 and raw for file, line, _, raw in rows)
    ((came, loaded, quarantined, duplicates),) = warehouse.query(
        "SELECT rows_in, rows_loaded, rows_quarantined, rows_duplicate FROM heart_analysis.load_batch"
    )
    assert came == loaded + quarantined + duplicates and quarantined == len(rows) and came >= 3
    assert warehouse.query("SELECT count(*) FROM heart_analysis.heart_fact") == [(loaded,)]


# Values as hospitals deliver them, and as they should not; few account ids, so that lines meet.
ids = st.sampled_from(["A1", "A2", "A3", " A1", "a1", "", "=A", "Ä"])
cells = st.one_of(
    st.sampled_from(
        ["?", "", "0", "1", "2", "3", "6", "120", "-1", "1.5", "1e3", "nan", "inf", "1,5", '"1"', '"', "x", "1_0", " 2 "]
    ),
    st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=6),
)
accounts = st.lists(st.tuples(ids, cells, cells).map(";".join), max_size=6)
hearts = st.lists(st.tuples(ids, *[cells] * 12).map(";".join), max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(accounts=accounts, hearts=hearts)
def test_no_line_is_lost_whatever_is_delivered(tmp_path_factory, accounts, hearts):
    delivery = Delivery(tmp_path_factory.mktemp("any"))
    delivery.write("a", "\n".join([ACCOUNT_HEADER, *accounts]) + "\n", "\n".join([HEART_HEADER, *hearts]) + "\n")
    outcomes = run_until_refused(delivery, "a", ("extract", "transform"))
    if outcomes["extract"].code == REFUSED:
        assert "no rows" in outcomes["extract"].error
        return
    for outcome in outcomes.values():
        if outcome.code == DONE:
            rows = outcome.rows
            assert rows["in"] == rows["out"] + rows["rejected"] + rows["duplicate"]
    extracted = outcomes["extract"]
    assert extracted.result is not None
    lines = [line for line in (*accounts, *hearts) if line.strip()]
    assert sum(source["rows"] for source in extracted.result["inputs"]) == len(lines)
    if outcomes["transform"].code == REFUSED:
        assert "--dialect" in outcomes["transform"].error
        return
    # Every line is found again: set aside by extract, or in one of transform's three files.
    seen = read_lines(delivery.output(extracted, "quarantine.csv"))
    seen |= read_lines(delivery.output(outcomes["transform"], "quarantine.csv"))
    seen |= read_lines(delivery.output(outcomes["transform"], "duplicates.csv"))
    with delivery.output(outcomes["transform"], "records.csv").open(newline="") as file:
        loaded = len(list(csv.DictReader(file)))
    heart_lines = {("heart_raw.csv", i) for i, line in enumerate(hearts, 2) if line.strip()}
    assert len(heart_lines - seen) == loaded
    joined = len({("account_raw.csv", i) for i, line in enumerate(accounts, 2) if line.strip()} - seen)
    assert loaded <= joined <= len(heart_lines)


def test_a_batch_without_one_sound_record_is_quarantined_whole(loading, warehouse):
    loading.write("a", f"{ACCOUNT_HEADER}\nA1;63;1\n", f"{HEART_HEADER}\nA1;1;\x00\n")
    outcomes = loading.etl("a")
    assert outcomes["load"].rows["out"] == 0
    assert warehouse.query("SELECT rows_in, rows_loaded, rows_quarantined FROM heart_analysis.load_batch") == [(2, 0, 2)]


def read_lines(path: Path) -> set[tuple[str, int]]:
    """Return the file and line that each row of a quarantine or of the duplicates names."""
    with path.open(newline="") as file:
        return {(row["file"], int(row["line"])) for row in csv.DictReader(file)}
