"""How long many records take through extract, transform and load, beside what a user would take instead."""

import contextlib
import os
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from figures import Figure, Scale, seconds
from lab import ETL, Lab, deliver, laboratory, most_memory, timed

import servers
from runners import docker
from support import ENVIRONMENTS, NOTHING_TO_DO, ROOT

MEASURES = "cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, target"
STAR = {
    "account_dim": "account_id, age, sex, load_id",
    "heart_disease_dim": f"account_id, {MEASURES}, load_id",
    "heart_fact": f"account_id, age, sex, {MEASURES}, batch, load_id",
}
RAW = {"account_raw": "account_id, age, sex", "heart_raw": f"account_id, {MEASURES}"}
# As many stages as stack/airflow_init.py lets work at the same time.
AT_A_TIME = 2
# Megabytes that a stage may take, and what its memory and its time per record may grow by with ten times as many records.
MOST_MEMORY = 512
MEMORY_GROWTH, TIME_GROWTH = 1.1, 1.15


def records(scale: Scale) -> Iterator[Figure]:
    """Seconds and megabytes that many records take."""
    with laboratory() as lab:
        taken = {people: {**etl(lab, people, scale), **memory(lab, people)} for people in scale.sizes}
        yield from beside_others(lab, scale, taken[scale.people])
        yield from growth(scale, taken)


def etl(lab: Lab, people: int, scale: Scale) -> dict[str, float]:
    """Return the median seconds of each stage on a new batch, of all on the same batch `again`, and of `psql` copying it.

    Of as many people as are compared with other ways also those of load on a `changed` batch.
    """
    data = lab.data(people, "bench")
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(scale.times):
        delivery = lab.delivery(data)
        for stage in ETL:
            taken[stage].append(timed(delivery, stage))
        delivery.run = "again"
        taken["again"].append(sum(timed(delivery, stage, expect=NOTHING_TO_DO) for stage in ETL))
        ready = write_ready(lab, delivery.variables, data / "bench")
        taken["psql"].append(copy(lab, lab.warehouse(), ready,
                                  {f"heart_analysis.{table}": (table, columns) for table, columns in STAR.items()}))  # fmt: skip
        if people == scale.people:
            delivery.run = "changed"
            deliver(delivery, lab.data(people, "bench", version=2))
            *_, changed = (timed(delivery, stage) for stage in ETL)
            taken["changed"].append(changed)
        lab.clear()
    return {name: statistics.median(values) for name, values in taken.items()}


def memory(lab: Lab, people: int) -> dict[str, float]:
    """Return the most megabytes that each stage had on a new batch, as `extract, memory`."""
    delivery = lab.delivery(lab.data(people, "bench"), as_process=True)
    most = {f"{stage}, memory": most_memory(delivery, stage) for stage in ETL}
    lab.clear()
    return most


def beside_others(lab: Lab, scale: Scale, few: dict[str, float]) -> Iterator[Figure]:
    """Compare the stages with other ways to load the same records, and with loading them again."""
    what, data = name_of(scale.people), lab.data(scale.people, "bench")
    whole = sum(few[stage] for stage in ETL)
    ready = ready_folder(lab, data / "bench")
    raw_tables = {table: (table, columns) for table, columns in RAW.items()}
    raw = statistics.median(copy(lab, with_raw_tables(lab.warehouse()), ready, raw_tables) for _ in range(scale.times))
    pandas = seconds(lambda: the_pandas_way(data / "bench", lab.warehouse()), scale.times if scale.long else 1)

    for stage in ETL:
        yield Figure(f"{what}: {stage}", few[stage], "s")
    yield from against_psql(what, few)
    yield Figure(f"{what}: all three", whole, "s", "COPY of the raw files", ratio=whole / raw, target=4)
    yield Figure(f"{what}: all three", whole, "s", "read_csv, merge, to_sql", ratio=whole / pandas, target=round(1 / 15, 3))
    yield Figure(f"{what}: load, one in a thousand changed", few["changed"], "s", "the first time",
                 ratio=few["changed"] / few["load"], target=0.5)  # fmt: skip


def against_psql(what: str, taken: dict[str, float]) -> Iterator[Figure]:
    """Compare load with psql's copy of the ready rows, and all stages with what they take on the same batch again."""
    whole = sum(taken[stage] for stage in ETL)
    yield Figure(f"{what}: load", taken["load"], "s", r"psql \copy of the ready rows", ratio=taken["load"] / taken["psql"],
                 target=1.3)  # fmt: skip
    yield Figure(f"{what}: all three, delivered again", taken["again"], "s", "the first time", ratio=taken["again"] / whole,
                 target=0.05)  # fmt: skip


def growth(scale: Scale, measured: dict[int, dict[str, float]]) -> Iterator[Figure]:
    """Compare ten times as many records with ten times the time, and with the same memory; measured: people → figures."""
    (less, few), (what, many) = ((name_of(people), figures) for people, figures in measured.items())
    if scale.long:
        yield from against_psql(what, many)
    for stage in ETL:
        yield Figure(
            f"{what}: {stage}", many[stage], "s", f"10 × {less}", ratio=many[stage] / few[stage] / 10, target=TIME_GROWTH
        )
    whole, before = (sum(taken[stage] for stage in ETL) for taken in (many, few))
    yield Figure(f"{what}: all three", whole, "s", f"10 × {less}", ratio=whole / before / 10, target=TIME_GROWTH)
    for stage in ETL:
        most, least = many[f"{stage}, memory"], few[f"{stage}, memory"]
        yield Figure(f"{what}: {stage}, most memory", most, "MB", less, ratio=most / least, target=MEMORY_GROWTH)
        yield Figure(f"{what}: {stage}, most memory in all", most, "MB", target=MOST_MEMORY)


def batches(scale: Scale) -> Iterator[Figure]:
    """Seconds that four equal batches take, as many at a time as the pool lets in, beside one."""
    people, names = scale.people // 4, ("a", "b", "c", "d")

    def all_of(*chosen: str) -> tuple[float, float]:
        delivery = lab.delivery(data)

        def chain(batch: str) -> None:
            for stage in ETL:
                delivery.stage(stage, batch)

        def work() -> None:
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                list(pool.map(chain, chosen))

        before = busy_seconds()
        taken = seconds(work, 1)
        return taken, busy_seconds() - before

    with laboratory() as lab:
        data = lab.data(people, *names)
        runs = {chosen: [all_of(*chosen) for _ in range(scale.times)] for chosen in (names[:1], names)}
    (one, busy), (four, _) = ([statistics.median(values) for values in zip(*taken, strict=True)] for taken in runs.values())
    yield Figure(f"four batches of {name_of(people)}", four, "s", "one of them", ratio=four / one, target=2.2)
    # Less than this no order of work can reach: four times one batch's work, on all processors at once.
    least = 4 * busy / (os.cpu_count() or 1)
    yield Figure("four batches: the processors' time alone", least, "s", "one of them", ratio=least / one)


def busy_seconds() -> float:
    """Return for how many seconds this machine's processors have worked since it started, one beside the other counted twice."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def name_of(people: int) -> str:
    """Return a number of records as figures name it."""
    return f"{people:,} records".replace(",", " ")


def ready_folder(lab: Lab, delivered: Path) -> Path:
    """Return where the rows of a delivery lie for psql to copy."""
    return lab.folder / f"ready-{delivered.parent.name}"


def write_ready(lab: Lab, warehouse: dict[str, str], delivered: Path) -> Path:
    """Write the rows of the star as they are loaded, and the delivered files, for psql to copy; once for each delivery."""
    folder = ready_folder(lab, delivered)
    if not folder.exists():
        folder.mkdir()
        with contextlib.closing(servers.connect(warehouse)) as connection, connection.cursor() as cursor:
            for table, columns in STAR.items():
                with (folder / f"{table}.csv").open("wb") as file:
                    query = f"SELECT {columns} FROM heart_analysis.{table} ORDER BY account_id"
                    cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER, DELIMITER ';')", file)
        for table in RAW:
            (folder / f"{table}.csv").write_bytes((delivered / f"{table}.csv").read_bytes())
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
    return folder


def with_raw_tables(warehouse: dict[str, str]) -> dict[str, str]:
    """Make tables that take a delivery as it comes: text, without keys."""
    with contextlib.closing(servers.connect(warehouse)) as connection, connection, connection.cursor() as cursor:
        for table, columns in RAW.items():
            cursor.execute(f"CREATE TABLE {table} ({', '.join(f'{column} text' for column in columns.split(', '))})")
    return warehouse


def copy(lab: Lab, warehouse: dict[str, str], ready: Path, tables: dict[str, tuple[str, str]]) -> float:
    """Let psql copy files into tables, in a container as the stages run in; return the seconds that it took."""
    given = {"PGHOST": "postgres", "PGUSER": warehouse["PGUSER"], "PGDATABASE": warehouse["PGDATABASE"], "PGPASSFILE": "/pgpass"}
    copies = [
        rf"\copy {table} ({columns}) FROM '/ready/{name}.csv' (FORMAT csv, HEADER, DELIMITER ';')"
        for table, (name, columns) in tables.items()
    ]
    options = ["run", "--rm", f"--network={lab.network}", "--user=10001", f"--volume={ready}:/ready:ro",
               f"--volume={warehouse['PGPASSFILE']}:/pgpass:ro", *(f"--env={key}={value}" for key, value in given.items()),
               "--entrypoint=psql", "heart-base/postgres:dev", "--set=ON_ERROR_STOP=1", "--quiet"]  # fmt: skip
    return seconds(lambda: docker(*options, *(f"--command={command}" for command in copies)), 1)


def the_pandas_way(delivered: Path, warehouse: dict[str, str]) -> None:
    """Load a delivery as most people would."""
    command = [ENVIRONMENTS / "mlflow/bin/python", ROOT / "tests/bench/pandas_way.py", delivered]
    subprocess.run(list(map(str, command)), env=os.environ | warehouse, check=True)
