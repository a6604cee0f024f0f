"""load: move a batch into the warehouse, whole or not at all, and reconcile the counts.

Reads   what transform left (`records.csv`, `quarantine.csv`) and what extract set aside (`quarantine.csv`).
Writes  `heart_analysis.account_dim`, `heart_disease_dim` and `heart_fact` (new people inserted, changed ones updated,
        the rest left as they are), `quarantine`, and a row of `load_batch` with source, content hash and counts.
Promise an account_id that another batch brought first is set aside, never written over;
        one transaction: COPY into a temporary staging table, upserts, counts that balance or nothing at all.
"""

import datetime as dt
import hashlib
import json
from pathlib import Path
from typing import Any

from psycopg2 import sql
from psycopg2.errors import UniqueViolation
from psycopg2.extensions import cursor as Cursor

from services import POSTGRES, warehouse
from stage import DependencyUnavailable, File, Job, Rows, command, log

COPY_RECORDS = "COPY staging FROM STDIN (FORMAT csv, HEADER)"
COPY_QUARANTINE = {
    "extract": "COPY set_aside (file, line, column_name, reason, raw) FROM STDIN (FORMAT csv, HEADER)",
    "transform": "COPY set_aside (file, line, account_id, column_name, reason, raw) FROM STDIN (FORMAT csv, HEADER)",
}


@command("Load the batch that transform left into PostgreSQL, in one transaction.", environment=POSTGRES)
def load(job: Job) -> None:
    """Run the stage: see the module's docstring."""
    extracted, transformed = job.result_of("extract"), job.result_of("transform")
    records = job.open_input("transform", "records.csv")
    quarantined = {stage: job.open_input(stage, "quarantine.csv") for stage in COPY_QUARANTINE}
    content_hash = hashlib.sha256("".join(file.sha256 for file in job.inputs).encode()).hexdigest()

    with warehouse("load") as connection, connection.cursor() as cursor:
        # Two loads of one batch take turns; the second finds the first's row and has nothing to do.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"load {job.batch}"])
        cursor.execute(
            "SELECT content_hash, loaded_at, rows_loaded FROM heart_analysis.load_batch WHERE batch = %s "
            "ORDER BY load_id DESC LIMIT 1",
            [job.batch],
        )
        newest = cursor.fetchone()
        if newest and newest[0] == content_hash and not job.force:
            staged = transformed["rows"]["out"]
            rows = Rows(in_=staged, out=newest[2], rejected=staged - newest[2])
            job.nothing_to_do(f"the warehouse has this content since {newest[1].astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC", rows)

        create_staging(cursor)
        copy(cursor, COPY_RECORDS, records)
        for stage, path in quarantined.items():
            copy(cursor, COPY_QUARANTINE[stage], path)
            cursor.execute("UPDATE set_aside SET stage = %s WHERE stage IS NULL", [stage])

        # What extract set aside never reached transform: together they are all that came in.
        came = extracted["rows"]["rejected"] + transformed["rows"]["in"]
        rejected = extracted["rows"]["rejected"] + transformed["rows"]["rejected"]
        loaded, set_aside = count(cursor, "staging"), count(cursor, "set_aside")
        if (loaded, set_aside) != (transformed["rows"]["out"], rejected):
            raise RuntimeError(f"{loaded} rows staged and {set_aside} set aside, where the results say {transformed['rows']}")
        log.info("staged", extra={"rows": loaded, "quarantined": set_aside})

        load_id = record_load(
            cursor,
            batch=job.batch,
            run=job.run,
            dialect=extracted["parameters"]["dialect"],
            source=json.dumps(extracted["inputs"]),
            content_hash=content_hash,
            image=job.image,
            rows_in=came,
            rows_loaded=loaded,
            rows_quarantined=set_aside,
            rows_duplicate=transformed["rows"]["duplicate"],
        )
        values = {"load_id": load_id, "batch": job.batch, "file": Path(extracted["inputs"][-1]["uri"]).name}
        inserted, updated, foreign = merge(cursor, values)
        loaded, set_aside = loaded - foreign, set_aside + foreign
        unchanged = loaded - inserted - updated
        cursor.execute(
            "UPDATE heart_analysis.load_batch SET rows_loaded = %s, rows_quarantined = %s, rows_inserted = %s, "
            "rows_updated = %s, rows_unchanged = %s WHERE load_id = %s",
            [loaded, set_aside, inserted, updated, unchanged, load_id],
        )
        cursor.execute(
            "INSERT INTO heart_analysis.quarantine (load_id, stage, file, line, account_id, column_name, reason, raw) "
            "SELECT %s, stage, file, line, account_id, column_name, reason, raw FROM set_aside ORDER BY file, line",
            [load_id],
        )
    written = {"inserted": inserted, "updated": updated, "unchanged": unchanged}
    log.info("loaded", extra={**written, "quarantined": set_aside, "load_id": load_id})
    table = File("heart_analysis.heart_fact", content_hash, loaded)
    rows = Rows(in_=loaded + foreign, out=loaded, rejected=foreign)
    job.commit(rows, tables=[table], metrics={"load_id": load_id, **written})


def record_load(cursor: Cursor, **columns: Any) -> int:
    """Add the row of load_batch that tells of this load, and return its id; what it changed is counted later."""
    statement = sql.SQL("INSERT INTO heart_analysis.load_batch ({}, rows_unchanged) VALUES ({}, {}) RETURNING load_id").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(map(sql.Placeholder, columns)),
        sql.Placeholder("rows_loaded"),
    )
    cursor.execute(statement, columns)
    return one_row(cursor)[0]


def create_staging(cursor: Cursor) -> None:
    """Make this load's own staging tables; they are gone with the transaction."""
    cursor.execute("CREATE TEMP TABLE staging (LIKE heart_analysis.heart_staging) ON COMMIT DROP")
    cursor.execute(
        "CREATE TEMP TABLE set_aside (stage varchar, file varchar, line bigint, account_id varchar, column_name varchar, "
        "reason varchar, raw text) ON COMMIT DROP"
    )


def copy(cursor: Cursor, statement: str, path: Path) -> None:
    """Send a CSV file to a table as it is."""
    with path.open("rb") as file:
        cursor.copy_expert(statement, file)


def count(cursor: Cursor, table: str) -> int:
    """Return how many rows a table has."""
    cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
    return one_row(cursor)[0]


def merge(cursor: Cursor, values: dict[str, Any]) -> tuple[int, int, int]:
    """Bring the star up to what is staged; return how many records were inserted, updated and set aside.

    Raises DependencyUnavailable where another load brought some of the same people since this one looked, RuntimeError where
    a dimension has people that the fact table lacks: the database's own messages would name them.
    """
    try:
        cursor.execute((Path(__file__).parent / "star.sql").read_text(encoding="utf-8"), values)
    except UniqueViolation as error:
        if error.diag.table_name != "heart_fact":
            raise RuntimeError(f"{error.diag.table_name} has people that heart_fact lacks: remove them there first") from None
        raise DependencyUnavailable("another load brought some of the same people at this moment; try again") from None
    inserted, updated, foreign = one_row(cursor)
    return inserted, updated, foreign


def one_row(cursor: Cursor) -> tuple[Any, ...]:
    """Return the one row that a query gives."""
    (row,) = cursor.fetchall()
    return row


if __name__ == "__main__":
    load()
