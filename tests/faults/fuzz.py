"""Deliver files that were spoilt byte by byte, and see that extract, transform and load stand it.

Each delivery is made of real files by its number and the seed alone, so that it can be made again. For each: no traceback, no
hang over 10 s, no more memory than the contract gives the stage, and every line accounted for: in = loaded + set aside +
duplicate, in the results and in the warehouse. What fails is kept, with its log.
"""

import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "dags", "embedded")]
from containers import bytes_of  # noqa: E402
from processes import process_of  # noqa: E402
from stages import DONE, REFUSED, RESULT_MARKER, STAGES  # noqa: E402
from support import ENVIRONMENTS, Warehouse, make_warehouse  # noqa: E402

KEPT = ROOT / ".run" / "fuzz"
ETL = [name for name, stage in STAGES.items() if stage.per_batch]
# What has broken readers of CSV before.
VALUES = (
    b"", b"?", b"nan", b"NaN", b"inf", b"-inf", b"1e308", b"-1e308", b"1e400", b"-1", b"0", b"00", b"1.", b".5", b"1,5", b"0x10",
    b"9" * 40, b"1_000", b"\xef\xbc\x91", b"\xd9\xa3", b"=1+1", b"=cmd|' /C calc'!A0", b"@SUM(A1)",
    b"'; DROP TABLE heart_fact; --", b'"', b'""', b'"a;b"', b"\\", b"\\N", b"NULL", b"null", b"None", b"true", b"\x00", b"\x1a",
    b"\x0b", b"\xa0", b"\xe2\x80\xa8", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\n\n", b";", b",", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\xc3", b"\xed\xa0\x80", b"cle-0001", b"CLE-0001 ", b"a" * 300, b"x" * 70_000, b"\xf0\x9f\xab\x80", b"account_id", b"target",
)  # fmt: skip


@dataclass
class Failure:
    """A delivery that was not stood: its number, what happened, the stage."""

    number: int
    stage: str
    what: str


def spoil(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Return a file's content with a few changes."""
    lines = content.splitlines(keepends=True)
    content = b"".join(lines[: draw.randint(2, min(len(lines), 25))])
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at, length = draw.randrange(len(content) + 1), draw.choice((1, 1, 2, 5, 40, 400))
        kind = draw.randrange(9)
        piece = content[at : at + length]
        if kind == 0:
            piece = bytes(byte ^ (1 << draw.randrange(8)) for byte in piece)
        elif kind == 1:
            piece = draw.randbytes(length)
        elif kind == 2:
            piece = b""
        elif kind == 3:
            piece = piece * draw.randint(2, 4)
        elif kind == 4:
            piece = draw.choice(VALUES)
        elif kind == 5:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            piece = other[start : start + length]
        elif kind in (6, 7):  # a whole field
            fields = content.replace(b"\n", b"\n;").split(b";")
            fields[draw.randrange(len(fields))] = draw.choice(VALUES)
            content, piece = b";".join(fields).replace(b"\n;", b"\n"), b""
            at = length = 0
        elif draw.random() < 0.2:
            content = content[:at]
        content = content[:at] + piece + content[at + length :]
    return content


def deliver(number: int, seed: int, data: Path) -> str:
    """Write a delivery into a folder; return its dialect."""
    draw = random.Random(f"{seed}/{number}")  # noqa: S311 - to be made again
    if draw.random() < 0.15:
        real = [(ROOT / "data" / "kaggle_heart.csv").read_bytes()]
        (data / "b.csv").write_bytes(spoil(real[0], real, draw))
        return "kaggle"
    folders = sorted(path.parent for path in (ROOT / "data").glob("*/heart_raw.csv"))
    folder = draw.choice(folders)
    real = [(folder / name).read_bytes() for name in ("account_raw.csv", "heart_raw.csv")]
    chosen = draw.choice(("account", "heart", "heart", "both"))
    (data / "b").mkdir()
    for name, content in zip(("account", "heart"), real, strict=True):
        short = b"".join(content.splitlines(keepends=True)[:25])
        (data / "b" / f"{name}_raw.csv").write_bytes(spoil(content, real, draw) if chosen in (name, "both") else short)
    return "uci"


class Bench:
    """Stages ready to run, a warehouse, and a folder for one delivery at a time."""

    def __init__(self, postgres: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.environment = make_warehouse(postgres)
        self.warehouse = Warehouse(self.environment)
        self.servers: dict[str, subprocess.Popen[str]] = {}
        needed = {"transform": ["duckdb"], "load": ["psycopg2"]}
        for stage in ETL:
            (python, source), around = process_of(stage, ENVIRONMENTS, {})
            around["PYTHONPATH"] += f":{Path(source).parent}"
            command = [python, str(Path(__file__).with_name("forkserver.py")), stage, *needed.get(stage, [])]
            self.servers[stage] = subprocess.Popen(
                command, env=around, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )

    def close(self) -> None:
        """End the stages."""
        for server in self.servers.values():
            server.stdin.close()  # type: ignore[union-attr]
            server.wait()

    def run(self, stage: str, environment: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any] | None, str]:
        """Run a stage; return how it ended, its result document, and its log."""
        log = self.folder / stage
        given = {name: value for name, value in environment.items() if name in STAGES[stage].variables}
        server = self.servers[stage]
        server.stdin.write(json.dumps({"environment": given, "log": str(log)}) + "\n")  # type: ignore[union-attr]
        ended = json.loads(server.stdout.readline())  # type: ignore[union-attr]
        out, err = (Path(f"{log}.{end}").read_text(errors="replace") for end in ("out", "err"))
        results = [json.loads(line.removeprefix(RESULT_MARKER)) for line in out.splitlines() if line.startswith(RESULT_MARKER)]
        return ended, results[-1] if results else None, err

    def try_one(self, number: int, seed: int) -> tuple[str, Failure | None]:
        """Take a delivery through the stages; return how it ended in a word, and what was wrong."""
        data = self.folder / "data"
        for name in ("data", "artifacts"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        data.mkdir()
        dialect = deliver(number, seed, data)
        environment = {
            "HEART_RUN": "r", "HEART_BATCH": "b", "HEART_ARTIFACTS": str(self.folder / "artifacts"), "HEART_DATA": str(data),
            "HEART_DIALECT": dialect, "HEART_IMAGE": "fuzz", **self.environment,
        }  # fmt: skip
        for table in ("quarantine", "load_batch", "account_dim", "heart_disease_dim", "heart_fact"):
            self.warehouse.query(f"DELETE FROM heart_analysis.{table}")  # faster than TRUNCATE where there are few rows
        for stage in ETL:
            ended, result, log = self.run(stage, environment)
            wrong = self.wrong_with(stage, ended, result, log, data)
            if wrong:
                return "failed", Failure(number, stage, f"{wrong}\n{log[-3000:]}")
            if ended["code"] == REFUSED:
                return f"refused by {stage}", None
        assert result is not None
        return ("loaded, some set aside" if self.set_aside() else "loaded"), None

    def set_aside(self) -> int:
        """Return how many records were set aside or repeated."""
        return self.warehouse.query("SELECT rows_quarantined + rows_duplicate FROM heart_analysis.load_batch")[0][0]

    def wrong_with(self, stage: str, ended: dict[str, Any], result: dict[str, Any] | None, log: str, data: Path) -> str:
        """Return what a stage did that it promised not to do, or an empty text."""
        if ended["code"] not in (DONE, REFUSED):
            return f"{stage} ended with {ended['code']}"
        if "Traceback" in log:
            return f"{stage} left a traceback"
        if ended["bytes"] > bytes_of(STAGES[stage].memory):
            return f"{stage} used {ended['bytes']:,} bytes"
        if ended["code"] == REFUSED:
            return "" if log.count('"level": "ERROR"') == 1 else f"{stage} did not say in one line why"
        rows = (result or {}).get("rows")
        if not rows or rows["in"] != rows["out"] + rows["rejected"] + rows["duplicate"]:
            return f"{stage}'s counts don't balance: {rows}"
        if stage == "extract":
            for file in (result or {})["inputs"]:
                lines = Path(file["uri"]).read_bytes().split(b"\n")[1:]
                if file["rows"] != (there := sum(bool(line.strip()) for line in lines)):
                    return f"{file['uri']} has {there} lines, {file['rows']} are accounted for"
        if stage == "load":
            told = self.warehouse.query(
                "SELECT rows_in, rows_loaded, rows_quarantined, rows_duplicate FROM heart_analysis.load_batch"
            )
            held = self.warehouse.query(
                "SELECT (SELECT count(*) FROM heart_analysis.heart_fact), (SELECT count(*) FROM heart_analysis.account_dim), "
                "(SELECT count(*) FROM heart_analysis.heart_disease_dim), (SELECT count(*) FROM heart_analysis.quarantine)"
            )
            came, loaded, aside, repeated = told[0]
            if came != loaded + aside + repeated or held != [(loaded, loaded, loaded, aside)]:
                return f"load_batch says {told}, the tables hold {held}"
        return ""


@contextlib.contextmanager
def benches(postgres: dict[str, str], count: int) -> Iterator[list[Bench]]:
    """Give benches that work side by side."""
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for number in range(count):
            place = Path(folder, str(number))
            place.mkdir()
            made.append(Bench(postgres, place))
        try:
            yield made
        finally:
            for bench in made:
                bench.close()


def fuzz(postgres: dict[str, str], numbers: range, seed: int) -> tuple[Counter[str], list[Failure]]:
    """Try every delivery of these numbers; return how they ended, and those that were not stood."""
    ends: Counter[str] = Counter()
    failures: list[Failure] = []
    with benches(postgres, 2) as pair:

        def work(share: int) -> None:
            for number in numbers[share :: len(pair)]:
                end, failure = pair[share].try_one(number, seed)
                ends[end] += 1
                if failure:
                    failures.append(failure)
                    place = KEPT / f"{seed}-{number}"
                    shutil.rmtree(place, ignore_errors=True)
                    shutil.copytree(pair[share].folder / "data", place)
                    (place / "log").write_text(f"{failure.stage}: {failure.what}\n")
                if sys.stderr.isatty() and sum(ends.values()) % 50 == 0:
                    print(f"\r{sum(ends.values())} of {len(numbers)}, {len(failures)} not stood", end="", file=sys.stderr)

        with ThreadPoolExecutor(len(pair)) as pool:
            list(pool.map(work, range(len(pair))))
    return ends, failures


@click.command(help=__doc__)
@click.option("--count", envvar="COUNT", show_envvar=True, default=10_000, show_default=True, help="How many deliveries.")
@click.option("--seed", envvar="SEED", show_envvar=True, default=1, show_default=True, help="Other deliveries for another seed.")
@click.option("--only", envvar="ONLY", show_envvar=True, type=int, help="The number of one delivery, to make it again.")
def main(count: int, seed: int, only: int | None) -> None:
    """Run the command: see the module's docstring."""
    import servers

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as state:
        servers.STATE = Path(state)
        with servers.postgres() as postgres:
            ends, failures = fuzz(postgres, range(count) if only is None else range(only, only + 1), seed)
    print(f"\nseed {seed}: {sum(ends.values())} deliveries in {time.monotonic() - started:.0f} s")
    for end, number in ends.most_common():
        print(f"  {number:6} {end}")
    for failure in sorted(failures, key=lambda failure: failure.number)[:20]:
        print(
            f"{KEPT}/{seed}-{failure.number}: {failure.what.splitlines()[0]}; again: make fuzz SEED={seed} ONLY={failure.number}"
        )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
