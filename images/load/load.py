"""load: move a batch into the warehouse, whole or not at all, and reconcile the counts.

Reads   what transform left (`records.csv`, `quarantine.csv`) and what extract set aside (`quarantine.csv`).
Writes  `heart_analysis.account_dim`, `heart_disease_dim` and `heart_fact` (new people inserted, changed ones updated,
        the rest left as they are), `quarantine`, and a row of `load_batch` with source, content hash and counts.
Promise an account_id that another batch brought first is set aside, never written over;
        one transaction, with counts that balance, or nothing at all.

A batch that was never loaded goes straight into the three tables, as fast as COPY fills them. One that was, or that shares
an account_id with another, goes into a temporary table first, where star.sql compares it with what is known.
"""

import datetime as dt
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from psycopg2 import sql
from psycopg2.errors import DeadlockDetected, UniqueViolation
from psycopg2.extensions import cursor as Cursor

from services import POSTGRES, warehouse
from stage import DependencyUnavailable, File, Job, Rows, command, log

COPY_RECORDS = "COPY staging FROM STDIN (FORMAT csv, HEADER)"
MEASURES = "cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target"
# So much of a file is read, rewritten and sent at a time, while PostgreSQL takes in what was sent before.
BLOCK_BYTES = 262_144
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

        # What extract set aside never reached transform: together they are all that came in.
        rejected = extracted["rows"]["rejected"] + transformed["rows"]["rejected"]
        load_id = record_load(
            cursor,
            batch=job.batch,
            run=job.run,
            dialect=extracted["parameters"]["dialect"],
            source=json.dumps(extracted["inputs"]),
            content_hash=content_hash,
            image=job.image,
            rows_in=extracted["rows"]["rejected"] + transformed["rows"]["in"],
            rows_loaded=transformed["rows"]["out"],
            rows_quarantined=rejected,
            rows_duplicate=transformed["rows"]["duplicate"],
        )
        create_set_aside(cursor)
        set_aside = 0
        for stage, path in quarantined.items():
            set_aside += copy(cursor, COPY_QUARANTINE[stage], path)
            cursor.execute("UPDATE set_aside SET stage = %s WHERE stage IS NULL", [stage])

        values = {"load_id": load_id, "batch": job.batch, "file": Path(extracted["inputs"][-1]["uri"]).name}
        became = None if newest else copy_new_people(cursor, records, values)
        came, inserted, updated, foreign = became or merge(cursor, records, values)
        if (came, set_aside) != (transformed["rows"]["out"], rejected):
            raise RuntimeError(f"{came} records and {set_aside} set aside, where the results say {transformed['rows']}")
        loaded, set_aside = came - foreign, set_aside + foreign
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


def create_set_aside(cursor: Cursor) -> None:
    """Make a table of this load's own for the records that are set aside; it is gone with the transaction."""
    cursor.execute(
        "CREATE TEMP TABLE set_aside (stage varchar, file varchar, line bigint, account_id varchar, column_name varchar, "
        "reason varchar, raw text) ON COMMIT DROP"
    )


def copy(cursor: Cursor, statement: str, path: Path) -> int:
    """Send a CSV file to a table as it is; return how many rows went in."""
    with path.open("rb") as file:
        cursor.copy_expert(statement, file)
    return cursor.rowcount


class Rewritten(io.BufferedIOBase):
    """A file for COPY to read, each of its lines rewritten on the way."""

    def __init__(self, file: BinaryIO, rewrite: Callable[[bytes], bytes]) -> None:
        self.file, self.rewrite = file, rewrite

    def read(self, size: int | None = BLOCK_BYTES, /) -> bytes:
        """Return the next lines, as many as come to about so many bytes in the file; nothing at the end."""
        return b"".join(map(self.rewrite, self.file.readlines(size or -1)))


def copy_new_people(cursor: Cursor, records: Path, values: dict[str, Any]) -> tuple[int, int, int, int] | None:
    """Send the records straight into the star, a table at a time; return counts as `merge` does: all of them are inserted.

    Returns None, with nothing written, where somebody is there already, or is brought by another load at this moment.
    """
    end = f"{values['load_id']}\n".encode()
    end_of_fact = f"{values['batch']},{values['load_id']}\n".encode()

    def fact(line: bytes) -> bytes:
        record, _, _ = line.rpartition(b",")  # behind it stands the line in the delivery
        return b"%b,%b" % (record, end_of_fact)

    def account(line: bytes) -> bytes:
        account_id, age, sex, _ = line.split(b",", 3)
        return b"%b,%b,%b,%b" % (account_id, age, sex, end)

    def heart(line: bytes) -> bytes:
        account_id, _, _, rest = line.split(b",", 3)
        measures, _, _ = rest.rpartition(b",")
        return b"%b,%b,%b" % (account_id, measures, end)

    star = {
        f"heart_fact (account_id, age, sex, {MEASURES}, batch, load_id)": fact,
        "account_dim (account_id, age, sex, load_id)": account,
        f"heart_disease_dim (account_id, {MEASURES}, load_id)": heart,
    }
    counts = []
    cursor.execute("SAVEPOINT nothing_written")
    try:
        for table, rewrite in star.items():
            with records.open("rb") as file:
                file.readline()  # the header
                cursor.copy_expert(f"COPY heart_analysis.{table} FROM STDIN (FORMAT csv)", Rewritten(file, rewrite), BLOCK_BYTES)
            counts.append(cursor.rowcount)
    except (UniqueViolation, DeadlockDetected):
        cursor.execute("ROLLBACK TO SAVEPOINT nothing_written")
        return None
    if len(set(counts)) > 1:
        raise RuntimeError(f"{counts} rows written into the tables of the star, where all should have as many")
    return counts[0], counts[0], 0, 0


def merge(cursor: Cursor, records: Path, values: dict[str, Any]) -> tuple[int, int, int, int]:
    """Bring the star up to the records; return how many came, and were inserted, updated and set aside as another batch's.

    Raises DependencyUnavailable where another load brought some of the same people since this one looked, RuntimeError where
    a dimension has people that the fact table lacks: the database's own messages would name them.
    """
    cursor.execute("CREATE TEMP TABLE staging (LIKE heart_analysis.heart_staging) ON COMMIT DROP")
    came = copy(cursor, COPY_RECORDS, records)
    try:
        cursor.execute((Path(__file__).parent / "star.sql").read_text(encoding="utf-8"), values)
    except (UniqueViolation, DeadlockDetected) as error:
        if error.diag.table_name not in ("heart_fact", None):  # a deadlock is of no table
            raise RuntimeError(f"{error.diag.table_name} has people that heart_fact lacks: remove them there first") from None
        raise DependencyUnavailable("another load brought some of the same people at this moment; try again") from None
    inserted, updated, foreign = one_row(cursor)
    return came, inserted, updated, foreign


def one_row(cursor: Cursor) -> tuple[Any, ...]:
    """Return the one row that a query gives."""
    (row,) = cursor.fetchall()
    return row


if __name__ == "__main__":
    load()
