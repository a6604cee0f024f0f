"""load: the warehouse after each delivery, in one transaction, with counts that reconcile."""

import contextlib
import signal

import pytest

from runners import wait_until
from support import (
    ACCOUNT_HEADER,
    FEATURES,
    HEART_HEADER,
    NOTHING_TO_DO,
    REFUSED,
    UNAVAILABLE,
    USAGE,
    Delivery,
    Warehouse,
    read_outcome,
)

FACT = "SELECT account_id, age, chol, target, load_id FROM heart_analysis.heart_fact ORDER BY account_id"
COUNTS = (
    "SELECT rows_in, rows_loaded, rows_quarantined, rows_duplicate, rows_inserted, rows_updated, rows_unchanged "
    "FROM heart_analysis.load_batch ORDER BY load_id"
)
OURS = "pg_stat_activity WHERE datname = current_database() AND application_name = 'heart-load'"


def write(delivery: Delivery, people: dict[str, tuple[int, str, str]]) -> None:
    """Deliver people: account_id -> age, chol, target."""
    accounts = "".join(f"{a};{age};1\n" for a, (age, _, _) in people.items())
    hearts = "".join(f"{a};1;145;{chol};1;2;150;0;2.3;3;0;6;{target}\n" for a, (_, chol, target) in people.items())
    delivery.write("a", f"{ACCOUNT_HEADER}\n{accounts}", f"{HEART_HEADER}\n{hearts}")


def assert_dimensions_agree(warehouse: Warehouse) -> None:
    """See that the dimensions hold what the fact table holds, in every column."""
    for table, columns in (("account_dim", FEATURES[:2]), ("heart_disease_dim", [*FEATURES[2:], "target"])):
        query = f"SELECT account_id, {', '.join(columns)} FROM heart_analysis.{{}} ORDER BY account_id"
        assert warehouse.query(query.format(table)) == warehouse.query(query.format("heart_fact"))


def test_a_delivery_again_updates_what_changed_and_leaves_the_rest(loading, warehouse):
    write(loading, {"A1": (63, "233", "0"), "A2": (41, "204", "?"), "A3": (50, "bad", "1")})
    loading.etl("a")
    assert warehouse.query(FACT) == [("A1", 63, 233, 0, 1), ("A2", 41, 204, None, 1)]
    assert warehouse.query("SELECT file, line, column_name, reason, raw FROM heart_analysis.quarantine_current") == [
        ("heart_raw.csv", 4, "chol", "chol 'bad' is not a number (write ? where it is not known)",
         "A3;1;145;bad;1;2;150;0;2.3;3;0;6;1\nA3;50;1")
    ]  # fmt: skip
    assert_dimensions_agree(warehouse)
    assert warehouse.query(f"SELECT {', '.join(FEATURES)}, batch FROM heart_analysis.heart_fact WHERE account_id = 'A1'") == [
        (63, 1, 1, 145, 233, 1, 2, 150, 0, 2.3, 3, 0, 6, "a")
    ]
    # Fixed at the source, a diagnosis added, one person gone from the delivery, one new.
    write(loading, {"A2": (41, "204", "2"), "A3": (50, "250", "1"), "A4": (70, "?", "0")})
    loading.run = "run-2"
    loading.etl("a")
    assert warehouse.query(FACT) == [
        ("A1", 63, 233, 0, 1), ("A2", 41, 204, 1, 2), ("A3", 50, 250, 1, 2), ("A4", 70, None, 0, 2)
    ]  # fmt: skip
    assert warehouse.query(COUNTS) == [(3, 2, 1, 0, 2, 0, 0), (3, 3, 0, 0, 2, 1, 0)]
    assert warehouse.query("SELECT count(*) FROM heart_analysis.quarantine_current") == [(0,)]
    assert_dimensions_agree(warehouse)


def test_the_same_content_is_loaded_once_and_known_again_in_the_warehouse(loading, warehouse):
    write(loading, {"A1": (63, "233", "0")})
    loading.etl("a")
    before = warehouse.query("SELECT * FROM heart_analysis.heart_fact")
    loading.stage("load", "a", expect=NOTHING_TO_DO)
    loading.run = "run-2"
    for stage in ("extract", "transform", "load"):
        loading.stage(stage, "a", expect=NOTHING_TO_DO)
    assert warehouse.query("SELECT * FROM heart_analysis.heart_fact") == before
    outcome = loading.stage("load", "a", "--force")
    assert outcome.result and outcome.result["metrics"] == {"load_id": 2, "inserted": 0, "updated": 0, "unchanged": 1}
    assert warehouse.query("SELECT * FROM heart_analysis.heart_fact") == before


def test_what_was_not_loaded_is_loaded_later_though_the_stages_before_skip(loading, warehouse):
    write(loading, {"A1": (63, "233", "0")})
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    loading.stage("load", "a", expect=UNAVAILABLE, PGHOST="/nowhere")
    loading.run = "run-2"
    loading.stage("extract", "a", expect=NOTHING_TO_DO)
    loading.stage("transform", "a", expect=NOTHING_TO_DO)
    loading.stage("load", "a")
    assert len(warehouse.query(FACT)) == 1


def test_a_fault_in_the_middle_leaves_nothing_behind(loading, warehouse):
    write(loading, {"A1": (63, "233", "0")})
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    (loading.artifacts / "run-1/transform/a/records.csv").write_text("account_id\nA1\n")
    assert "altered or cut short" in loading.stage("load", "a", expect=REFUSED).error
    assert warehouse.query("TABLE heart_analysis.warehouse_counts") == [(0, 0, 0, 0, 0)]


def test_an_account_id_of_another_batch_is_set_aside_and_never_written_over(loading, warehouse):
    write(loading, {"1": (63, "233", "0"), "2": (41, "204", "1")})
    loading.etl("a")
    before = warehouse.query("SELECT * FROM heart_analysis.heart_fact")
    # Another hospital numbers its people from 1 too.
    (loading.data / "a").rename(loading.data / "b")
    write(loading, {"1": (63, "233", "0"), "2": (41, "204", "1")})
    heart = loading.data / "b/heart_raw.csv"
    heart.write_text(heart.read_text().replace("\n2;", "\n3;").replace("233", "180"))
    account = loading.data / "b/account_raw.csv"
    account.write_text(account.read_text().replace("\n2;", "\n3;"))
    outcome = loading.etl("b")["load"]
    assert outcome.rows == {"in": 2, "out": 1, "rejected": 1, "duplicate": 0}
    assert warehouse.query("SELECT * FROM heart_analysis.heart_fact WHERE batch = 'a'") == before
    assert warehouse.query("SELECT count(*) FROM heart_analysis.account_dim") == [(3,)]
    ((stage, file, line, account_id, reason),) = warehouse.query(
        "SELECT stage, file, line, account_id, reason FROM heart_analysis.quarantine_current"
    )
    assert (stage, file, line, account_id) == ("load", "heart_raw.csv", 2, "1") and "batch 'a'" in reason
    assert warehouse.query(COUNTS)[1] == (2, 1, 1, 0, 1, 0, 0)
    again = loading.stage("load", "b", expect=NOTHING_TO_DO)
    assert again.rows == {"in": 2, "out": 1, "rejected": 1, "duplicate": 0}


def test_says_what_is_missing(loading, warehouse):
    write(loading, {"A1": (63, "233", "0")})
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    assert "check PGHOST" in loading.stage("load", "a", expect=UNAVAILABLE, PGHOST="127.0.0.1", PGPORT="1").error
    warehouse.query("DROP SCHEMA heart_analysis CASCADE")
    assert "apply the files of sql/ first" in loading.stage("load", "a", expect=UNAVAILABLE).error
    loading.stage("load", None, expect=USAGE)


def test_two_loads_of_one_batch_at_once_load_it_once(loading, warehouse):
    write(loading, {f"A{i}": (63, "233", "0") for i in range(500)})
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    both = [loading.start("load", "a") for _ in range(2)]
    assert sorted(running.finish()[0] for running in both) == [0, NOTHING_TO_DO]
    assert warehouse.query("SELECT rows_loaded FROM heart_analysis.load_batch") == [(500,)]


@pytest.mark.parametrize("came_before", [False, True])
def test_people_whom_another_load_brings_at_this_moment_are_set_aside(loading, warehouse, came_before):
    import servers

    write(loading, {"A1": (63, "233", "0")})
    if came_before:
        loading.etl("a")
        loading.run = "run-2"
    write(loading, {"A1": (63, "233", "0"), "A2": (41, "204", "1")})
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    with contextlib.closing(servers.connect(warehouse.environment)) as other, other, other.cursor() as cursor:
        cursor.execute("INSERT INTO heart_analysis.heart_fact (account_id, batch, load_id) VALUES ('A2', 'b', 1)")
        running = loading.start("load", "a")
        wait_until(warehouse.has_waiting)
        other.commit()
    code, out, errors = running.finish()
    if came_before:  # what is known is compared once: its next try sees them
        assert code == UNAVAILABLE and "try again" in errors and "A2" not in errors, "ids are in no log"
        outcome = loading.stage("load", "a")
    else:
        outcome = read_outcome(code, out, errors)
    assert outcome.rows == {"in": 2, "out": 1, "rejected": 1, "duplicate": 0}
    assert warehouse.query("SELECT account_id, batch FROM heart_analysis.heart_fact ORDER BY 1") == [("A1", "a"), ("A2", "b")]
    assert warehouse.query("SELECT account_id FROM heart_analysis.account_dim") == [("A1",)]


def test_a_dimension_that_has_more_people_than_the_fact_table_is_named_and_nothing_is_loaded(loading, warehouse):
    write(loading, {"A1": (63, "233", "0"), "A2": (41, "204", "1")})
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    warehouse.query("INSERT INTO heart_analysis.heart_disease_dim (account_id, load_id) VALUES ('A2', 1)")
    code, _, errors = loading.start("load", "a").finish()
    assert code == 1 and "heart_disease_dim has people that heart_fact lacks" in errors and "A2" not in errors
    assert warehouse.query("TABLE heart_analysis.warehouse_counts") == [(0, 1, 0, 0, 0)]


def test_a_connection_that_breaks_in_the_middle_ends_with_75(loading, warehouse):
    write(loading, {"A1": (63, "233", "0")})
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    with warehouse.held():
        running = loading.start("load", "a")
        wait_until(warehouse.has_waiting)
        warehouse.query(f"SELECT pg_terminate_backend(pid) FROM {OURS}")
        outcome = read_outcome(*running.finish())
    assert outcome.code == UNAVAILABLE and outcome.error.startswith("PostgreSQL: ")
    loading.stage("load", "a")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopped_while_it_waits_for_the_database_it_is_gone_in_3_seconds_and_nothing_is_loaded(loading, warehouse, kind):
    write(loading, {"A1": (63, "233", "0")})
    loading.stage("extract", "a")
    loading.stage("transform", "a")
    with warehouse.held():
        running = loading.start("load", "a")
        wait_until(warehouse.has_waiting)
        code, seconds = running.stop(kind)
        assert code not in (0, NOTHING_TO_DO) and seconds < 3
    wait_until(lambda: warehouse.query(f"SELECT count(*) FROM {OURS}") == [(0,)])
    assert warehouse.query("TABLE heart_analysis.warehouse_counts") == [(0, 0, 0, 0, 0)]
    loading.stage("load", "a")
    assert len(warehouse.query(FACT)) == 1


def test_the_warehouse_itself_refuses_values_outside_the_domains(warehouse):
    import psycopg2

    for column, value in (("cp", 0), ("thal", 4), ("target", 2), ("chol", 0), ("age", 130), ("oldpeak", 11), ("sex", 2)):
        with pytest.raises(psycopg2.errors.CheckViolation):
            warehouse.query(
                f"INSERT INTO heart_analysis.heart_fact (account_id, {column}, batch, load_id) VALUES ('A', {value}, 'a', 1)"
            )


def test_tables_have_the_columns_that_were_promised(warehouse):
    columns = warehouse.query(
        "SELECT table_name, string_agg(column_name || ' ' || data_type, ', ' ORDER BY ordinal_position) "
        "FROM information_schema.columns "
        "WHERE table_schema = 'heart_analysis' AND table_name IN ('account_dim', 'heart_disease_dim', 'heart_fact') GROUP BY 1"
    )
    measures = [f"{c} {'double precision' if c == 'oldpeak' else 'integer'}" for c in HEART_HEADER.split(";")[1:]]
    person = ["age integer", "sex integer"]
    expected = {"account_dim": person, "heart_disease_dim": measures, "heart_fact": person + measures}
    for table, found in columns:
        assert found.split(", ")[: len(expected[table]) + 1] == ["account_id character varying", *expected[table]]
