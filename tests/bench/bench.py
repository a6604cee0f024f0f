"""Measure size, start and speed, each beside what it is compared with in the same run, and print a table.

Machines are shared and noisy: what counts is the ratio of two figures of one run, each the median of several repetitions.
Writes `.run/bench.json` and the table in `docs/performance.md`.

    make bench              everything
    make bench QUICK=1      one repetition of a few, to see that it works; writes nothing to docs/
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("dags", "embedded", "stack", "tests", "tests/bench")]

import etl_figures  # noqa: E402
import image_figures  # noqa: E402
import stack_figures  # noqa: E402
from figures import Figure  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- table: make bench writes what stands between these lines -->", "<!-- end of table -->"


def main() -> None:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")), help="one repetition of a few")
    quick = parser.parse_args().quick
    started = time.monotonic()
    figures = list(measure(quick))
    machine: dict[str, object] = {
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "docker": version(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - started),
    }
    (ROOT / ".run").mkdir(exist_ok=True)
    document = {"machine": machine, "figures": [figure.as_dict() for figure in figures]}
    (ROOT / ".run" / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    Console(width=130).print(table(figures))
    if not quick:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{markdown(figures, machine)}\n{END}{rest.split(END)[1]}")
        print(f"{DOCUMENT.relative_to(ROOT)} holds the table now")
    missed = [figure for figure in figures if figure.met is False]
    print(f"{len(figures)} figures in {machine['seconds']} s, {len(missed)} beyond their target; .run/bench.json has them all")


def measure(quick: bool) -> Iterator[Figure]:
    """Give the figures one after the other, saying what is at work."""
    for part in (image_figures.sizes, image_figures.starts, etl_figures.records, stack_figures.parsing, stack_figures.overhead):
        print(f"measuring {(part.__doc__ or '').splitlines()[0].rstrip('.').lower()}", flush=True)
        yield from part(1 if quick else 5, quick)


def version() -> str:
    """Return the Docker engine's version."""
    return subprocess.check_output(["docker", "version", "--format={{.Server.Version}}"], text=True).strip()


def table(figures: list[Figure]) -> Table:
    """Return the figures as a table for a terminal."""
    shown = Table("what", "measured", "compared with", "ratio or difference", "target", "met")
    shown.columns[0].no_wrap = True  # a figure's name is what people search the output for
    for figure in figures:
        shown.add_row(*figure.cells())
    return shown


def markdown(figures: list[Figure], machine: dict[str, object]) -> str:
    """Return the figures as a table for a page."""
    lines = [f"{machine['cpus']} cores, {machine['memory_gb']} GB, {machine['system']}, Docker {machine['docker']}, "
             f"{machine['date']}; the whole took {machine['seconds']} s.\n",
             "| what | measured | compared with | ratio or difference | target | met |", "|---|---|---|---|---|---|"]  # fmt: skip
    return "\n".join([*lines, *(f"| {' | '.join(figure.cells())} |" for figure in figures)]) + "\n"


if __name__ == "__main__":
    main()
