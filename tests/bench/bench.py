"""Measure size, start and speed, each beside what it is compared with in the same run, and print a table.

Machines are shared and noisy: what counts is the ratio of two figures of one run, each the median of several repetitions.
Writes `.run/bench.json`, and the table and the chart in `docs/performance.md`.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("dags", "embedded", "stack", "tests", "tests/bench")]

import etl_figures  # noqa: E402
import image_figures  # noqa: E402
import model_figures  # noqa: E402
import peer_figures  # noqa: E402
import stack_figures  # noqa: E402
from figures import Figure, Scale  # noqa: E402

from runners import docker  # noqa: E402
from support import ENVIRONMENTS  # noqa: E402

DOCUMENT = ROOT / "docs" / "performance.md"
PARTS = (
    image_figures.sizes,
    image_figures.starts,
    etl_figures.records,
    etl_figures.batches,
    model_figures.models,
    stack_figures.parsing,
    stack_figures.overhead,
    peer_figures.peers,
)
# Packages whose versions are told, as their locks have them.
TOLD = ("apache-airflow", "mlflow", "duckdb", "psycopg2-binary", "pandas", "scikit-learn", "kfp", "dagster")
BEGIN, END = "<!-- table: make bench writes what stands between these lines -->", "<!-- end of table -->"


@click.command("make bench", help=__doc__)
@click.option("--quick", envvar="QUICK", show_envvar=True, is_flag=True,
              help="One repetition of a few records, to see that all works; docs/ and bench.json stay as they are.")  # fmt: skip
@click.option("--scale", envvar="SCALE", show_envvar=True, type=click.Choice(("1m", "10m")), default="1m", show_default=True,
              help="How many records at most; ten million take some 30 minutes and 30 GB of disk.")  # fmt: skip
def bench(quick: bool, scale: str) -> None:
    """Measure, show, keep: see the module's docstring."""
    how_much = Scale(quick=quick, long=scale == "10m")
    started = time.monotonic()
    figures = list(measure(how_much))
    machine: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - started),
    }
    kept = ROOT / ".run" / ("bench-quick.json" if quick else "bench.json")
    kept.parent.mkdir(exist_ok=True)
    document = {"machine": machine, "figures": [figure.as_dict() for figure in figures]}
    kept.write_text(json.dumps(document, indent=2) + "\n")
    Console(width=130).print(table(figures))
    if not quick:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{markdown(figures, machine)}\n{END}{rest.split(END)[1]}")
        subprocess.run([ENVIRONMENTS / "evaluate/bin/python", ROOT / "tests/bench/chart.py"], check=True)
        print(f"{DOCUMENT.relative_to(ROOT)} holds the table now, and docs/performance.png the chart")
    missed = [figure for figure in figures if figure.met is False]
    print(f"{len(figures)} figures in {machine['seconds']} s, {len(missed)} beyond their target; .run/{kept.name} has them all")


def measure(scale: Scale) -> Iterator[Figure]:
    """Give the figures one after the other, saying what is at work."""
    started = time.monotonic()
    for part in PARTS:
        work = (part.__doc__ or "").splitlines()[0].rstrip(".").lower()
        print(f"{time.monotonic() - started:4.0f} s  measuring {work}", flush=True)
        yield from part(scale)


def versions() -> dict[str, str]:
    """Return the versions of what was measured and compared with, as locked."""
    locks = "".join(path.read_text() for path in [*ROOT.glob("images/*/requirements.txt"), ROOT / "tests/bench/requirements.txt"])
    named = dict(re.findall(r"^([\w-]+)==([\w.]+)", locks, flags=re.MULTILINE))
    postgres = docker("run", "--rm", "--entrypoint=psql", "heart-base/postgres:dev", "--version").split()[2]
    return {"docker": docker("version", "--format={{.Server.Version}}"), "postgresql": postgres} | {
        name: named[name] for name in TOLD
    }


def table(figures: list[Figure]) -> Table:
    """Return the figures as a table for a terminal."""
    shown = Table("what", "measured", "compared with", "ratio or difference", "target", "met")
    shown.columns[0].no_wrap = True  # a figure's name is what people search the output for
    for figure in figures:
        shown.add_row(*figure.cells())
    return shown


def markdown(figures: list[Figure], machine: dict[str, Any]) -> str:
    """Return the figures as a table for a page."""
    told = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [f"{machine['cpus']} cores, {machine['memory_gb']} GB, {machine['system']}; {told}. Measured on {machine['date']} "
             f"in {machine['seconds']} s.\n",
             "| what | measured | compared with | ratio or difference | target | met |", "|---|---|---|---|---|---|"]  # fmt: skip
    return "\n".join([*lines, *(f"| {' | '.join(figure.cells())} |" for figure in figures)]) + "\n"


if __name__ == "__main__":
    bench()
