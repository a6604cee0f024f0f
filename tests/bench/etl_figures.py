"""How long many records take through extract, transform and load, beside what a user would take instead."""

import contextlib
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from figures import Figure, seconds

import servers
from runners import ContainerRunner, ProcessRunner, docker, network, postgres_container
from support import DONE, ENVIRONMENTS, NOTHING_TO_DO, ROOT, Delivery, draw, make_warehouse

ETL = ("extract", "transform", "load")
MEASURES = "cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target"
STAR = {
    "account_dim": "account_id, age, sex, load_id",
    "heart_disease_dim": f"account_id, {MEASURES}, load_id",
    "heart_fact": f"account_id, age, sex, {MEASURES}, batch, load_id",
}
RAW = {"account_raw": "account_id, age, sex", "heart_raw": f"account_id, {MEASURES}"}


def records(times: int, quick: bool) -> Iterator[Figure]:
    """Seconds and megabytes that many records take."""
    people = 2_000 if quick else 1_000_000
    times = min(times, 3)
    what = f"{people:,} records".replace(",", " ")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        name = stack.enter_context(network())
        postgres, there = stack.enter_context(postgres_container(name, folder))
        runner = ContainerRunner(name, there)
        draw(folder / "first/bench", people)
        draw(folder / "changed/bench", people, version=2)

        taken: dict[str, list[float]] = {stage: [] for stage in (*ETL, "again", "load of what changed")}
        for number in range(times):
            delivery = Delivery(folder / f"run-{number}", run="first", variables=make_warehouse(postgres), runner=runner)
            deliver(delivery, folder / "first")
            for stage in ETL:
                taken[stage].append(timed(delivery, stage))
            delivery.run = "again"
            taken["again"].append(sum(timed(delivery, stage, NOTHING_TO_DO) for stage in ETL))
            delivery.run = "changed"
            deliver(delivery, folder / "changed")
            taken["load of what changed"].append([timed(delivery, stage) for stage in ETL][-1])
        median = {stage: statistics.median(values) for stage, values in taken.items()}
        etl = sum(median[stage] for stage in ETL)

        ready = folder / "ready"
        write_ready(ready, delivery.variables, folder / "first/bench")
        star = statistics.median(
            copy(
                name,
                make_warehouse(postgres),
                ready,
                {f"heart_analysis.{table}": (table, columns) for table, columns in STAR.items()},
            )
            for _ in range(times)
        )
        raw = statistics.median(
            copy(
                name,
                with_raw_tables(make_warehouse(postgres)),
                ready,
                {table: (table, columns) for table, columns in RAW.items()},
            )
            for _ in range(times)
        )
        pandas = seconds(lambda: the_pandas_way(folder / "first/bench", make_warehouse(postgres)), 1)

        for stage in ETL:
            yield Figure(f"{what}: {stage}", median[stage], "s")
        yield Figure(
            f"{what}: load", median["load"], "s", r"psql \copy of the ready rows", ratio=median["load"] / star, target=1.3
        )
        yield Figure(f"{what}: all three", etl, "s", "COPY of the raw files", ratio=etl / raw, target=4)
        yield Figure(f"{what}: all three", etl, "s", "read_csv, merge, to_sql", ratio=etl / pandas, target=round(1 / 15, 3))
        yield Figure(f"{what}: all three, delivered again", median["again"], "s", "the first time",
                     ratio=median["again"] / etl, target=0.05)  # fmt: skip
        yield Figure(f"{what}: load, one in a thousand changed", median["load of what changed"], "s", "the first time",
                     ratio=median["load of what changed"] / median["load"], target=0.5)  # fmt: skip
        bare = Delivery(folder / "bare", variables=make_warehouse(postgres), runner=ProcessRunner())
        deliver(bare, folder / "first")
        for stage in ETL:
            yield Figure(f"{what}: {stage}, most memory", most_memory(bare, stage), "MB", "the container's limit", target=512)


def timed(delivery: Delivery, stage: str, expect: int = DONE) -> float:
    """Run a stage; return the seconds that it took, its container's start and end included."""
    return seconds(lambda: delivery.stage(stage, "bench", expect=expect), 1)


def deliver(delivery: Delivery, data: Path) -> None:
    """Let a delivery's stages read a folder of batches."""
    delivery.folder.mkdir(exist_ok=True)
    delivery.data.unlink(missing_ok=True)
    delivery.data.symlink_to(data)


def write_ready(folder: Path, warehouse: dict[str, str], delivered: Path) -> None:
    """Write the rows of the star as they are loaded, and the delivered files, for psql to copy."""
    folder.mkdir()
    with contextlib.closing(servers.connect(warehouse)) as connection, connection.cursor() as cursor:
        for table, columns in STAR.items():
            with (folder / f"{table}.csv").open("wb") as file:
                query = f"SELECT {columns} FROM heart_analysis.{table} ORDER BY account_id"
                cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER, DELIMITER ';')", file)
    for table in RAW:
        (folder / f"{table}.csv").write_bytes((delivered / f"{table}.csv").read_bytes())
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755)


def with_raw_tables(warehouse: dict[str, str]) -> dict[str, str]:
    """Make tables that take a delivery as it comes: text, without keys."""
    with contextlib.closing(servers.connect(warehouse)) as connection, connection, connection.cursor() as cursor:
        for table, columns in RAW.items():
            cursor.execute(f"CREATE TABLE {table} ({', '.join(f'{column} text' for column in columns.split(', '))})")
    return warehouse


def copy(on: str, warehouse: dict[str, str], ready: Path, tables: dict[str, tuple[str, str]]) -> float:
    """Let psql copy files into tables, in a container as the stages run in; return the seconds that it took."""
    given = {"PGHOST": "postgres", "PGUSER": warehouse["PGUSER"], "PGDATABASE": warehouse["PGDATABASE"], "PGPASSFILE": "/pgpass"}
    copies = [
        rf"\copy {table} ({columns}) FROM '/ready/{name}.csv' (FORMAT csv, HEADER, DELIMITER ';')"
        for table, (name, columns) in tables.items()
    ]
    options = ["run", "--rm", f"--network={on}", "--user=10001", f"--volume={ready}:/ready:ro",
               f"--volume={warehouse['PGPASSFILE']}:/pgpass:ro", *(f"--env={key}={value}" for key, value in given.items()),
               "--entrypoint=psql", "heart-base/postgres:dev", "--set=ON_ERROR_STOP=1", "--quiet"]  # fmt: skip
    return seconds(lambda: docker(*options, *(f"--command={command}" for command in copies)), 1)


def the_pandas_way(delivered: Path, warehouse: dict[str, str]) -> None:
    """Load a delivery as most people would."""
    command = [ENVIRONMENTS / "mlflow/bin/python", ROOT / "tests/bench/pandas_way.py", delivered]
    subprocess.run(list(map(str, command)), env=os.environ | warehouse, check=True)


def most_memory(delivery: Delivery, stage: str) -> float:
    """Run a stage as a process; return the most memory that it had, in megabytes."""
    running = delivery.start(stage, "bench")
    _, status, usage = os.wait4(running.process.pid, 0)
    assert status == 0, running.process.stderr and running.process.stderr.read()
    return usage.ru_maxrss * 1024 / 1e6
