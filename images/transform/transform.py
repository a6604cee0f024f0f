"""transform: give a batch its meaning: join, types, canonical codes, ranges, duplicates.

Reads   what extract left: `heart.csv` and, in UCI's layout, `account.csv`, each line with its number in the delivery.
Writes  `records.csv`: one line a person in the order of account_id's bytes, canonical codes (UCI's), an empty field where
        nothing is known, target 1 = disease, and the line it stood on; `quarantine.csv`: file, line, account_id, column,
        reason and raw text of each rejected record;
        `duplicates.csv`: file, line and account_id of each repeated line, and the line that it repeats.
Promise records in = out + rejected + duplicates. A file whose codes are those of the other dialect is refused.

The work is done inside DuckDB, which joins and sorts on disk where a batch is larger than the memory it is given:
schema.sql declares the columns, uci.sql and kaggle.sql read the two layouts, transform.sql joins and judges.
"""

import contextlib
import csv
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import duckdb

from stage import InputRefused, Job, Rows, command, log

# Past this DuckDB goes to disk.
MEMORY_LIMIT = "320MB"
OTHER = {"uci": "kaggle", "kaggle": "uci"}
# Characters that extract never lets through: so a field is never taken for NULL, nor a line split.
NEVER, NOR_THIS = "\x01", "\x02"


@command("Join, type and check the batch that extract left, in canonical codes. Needs no network.")
def transform(job: Job) -> None:
    """Run the stage: see the module's docstring."""
    extracted = job.result_of("extract")
    dialect = extracted["parameters"]["dialect"]
    # extract lists its outputs in the order of its inputs: so a file's name in the delivery is known.
    delivered = {
        Path(output["uri"]).stem: Path(source["uri"]).name
        for output, source in zip(extracted["outputs"], extracted["inputs"], strict=False)
    }
    paths = {table: job.open_input("extract", f"{table}.csv") for table in delivered}
    job.skip_if_unchanged(dialect=dialect)

    with job.output_folder() as folder, scratch(folder.parent) as db:
        db.execute("SET VARIABLE dialect = ?", [dialect])
        db.execute("SET VARIABLE other = ?", [OTHER[dialect]])
        for table, path in paths.items():
            view_lines(db, table, path)
        db.execute("CREATE TABLE delivered AS SELECT ? AS heart, ? AS account",
                   [delivered["heart"], delivered.get("account")])  # fmt: skip
        run_sql(db, "schema")
        run_sql(db, dialect)
        run_sql(db, "transform")
        refuse_other_dialect(db, dialect, delivered["heart"])
        for name in ("records", "quarantine", "duplicates"):
            db.table(name).to_csv(str(folder / f"{name}.csv"), header=True)
        came, records, quarantined, duplicates = db.sql("FROM counts").fetchall()[0]
        notes = dict(db.sql("FROM notes").fetchall())

        log.info("judged", extra={"rows": came, "quarantined": quarantined, "duplicates": duplicates, "notes": notes})
        outputs = {"records.csv": records, "quarantine.csv": quarantined, "duplicates.csv": duplicates}
        metrics = {"dialect": dialect, "notes": notes}
        job.commit(Rows(came, records, quarantined, duplicates), folder=folder, outputs=outputs, metrics=metrics)


def run_sql(db: duckdb.DuckDBPyConnection, name: str) -> None:
    """Run one of the SQL files beside this one."""
    db.execute((Path(__file__).parent / f"{name}.sql").read_text(encoding="utf-8"))


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a database in a folder. Raises OSError where there is no room, as Python's own files do.

    It is on disk: from tables in memory ten million records don't fit into the limit, though they could be spilled.
    """
    try:
        with duckdb.connect(folder / "scratch.duckdb") as db:
            db.execute("SET memory_limit = ?", [MEMORY_LIMIT])
            db.execute("SET temp_directory = ?", [str(folder / "spilled")])
            # Joins are done as they are written, the second table held in memory; guesses at the lengths of files were wrong.
            db.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
            # The one order that counts, that of the records, is asked for.
            db.execute("SET preserve_insertion_order = false")
            db.execute("PRAGMA disable_checkpoint_on_shutdown")
            yield db
    except duckdb.Error as error:  # of several kinds
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def view_lines(db: duckdb.DuckDBPyConnection, table: str, path: Path) -> None:
    """Make two views of a file of extract's: `<table>_line`, its fields as text, and `<table>_text`, whole lines."""
    with path.open(encoding="utf-8", newline="") as file:
        header = file.readline().rstrip("\n")
    delimiter = header[len("line")]
    names = next(csv.reader([header], delimiter=delimiter))
    types = {name: "BIGINT" if name == "line" else "VARCHAR" for name in names}
    db.read_csv(str(path), columns=types, delimiter=delimiter, header=True, auto_detect=False, quotechar='"',
                escapechar='"', na_values=NEVER).create_view(f"{table}_line")  # fmt: skip
    db.read_csv(str(path), columns={"text": "VARCHAR"}, delimiter=NEVER, header=True, auto_detect=False, quotechar="",
                escapechar="", na_values=NOR_THIS).create_view(f"{table}_text")  # fmt: skip


def refuse_other_dialect(db: duckdb.DuckDBPyConnection, dialect: str, file: str) -> None:
    """Raise InputRefused where more lines have codes that only the other dialect knows than that only this one does."""
    only_this, only_other, first = db.sql(
        "SELECT count(*) FILTER (fits_this AND NOT fits_other), count(*) FILTER (fits_other AND NOT fits_this), "
        "min(line) FILTER (fits_other AND NOT fits_this) FROM heart_judged"
    ).fetchall()[0]
    if only_other > only_this:
        other = OTHER[dialect]
        raise InputRefused(
            f"{file}: {only_other} lines (the first is line {first}) have codes that only the dialect {other!r} knows, "
            f"{only_this} have codes that only {dialect!r} knows; read it with --dialect {other} (make run: DIALECT={other}), "
            "where the codes and the target mean something else"
        )


if __name__ == "__main__":
    transform()
