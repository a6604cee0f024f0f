"""Where stages are measured: PostgreSQL in a container, deliveries of any size, and stages run on them as the DAGs run them."""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from figures import seconds

import servers
from runners import ContainerRunner, ProcessRunner, network, postgres_container
from support import DONE, Delivery, draw, make_warehouse

ETL = ("extract", "transform", "load")


class Lab:
    """A PostgreSQL server on a network, and a folder for files. Each delivery gets a warehouse of its own."""

    def __init__(self, folder: Path, network: str, postgres: dict[str, str], there: dict[str, str]) -> None:
        self.folder, self.network, self.postgres = folder, network, postgres
        self.runner = ContainerRunner(network, there)
        self._made: list[Delivery] = []
        self._databases: list[str] = []

    def data(self, people: int, *batches: str, version: int = 1) -> Path:
        """Return a folder with deliveries of so many people each, drawn where they are not there yet."""
        folder = self.folder / f"{people}-people-{len(batches)}-batches-version-{version}"
        for number, batch in enumerate(batches):
            if not (folder / batch).exists():
                draw(folder / batch, people, version=version, first=number * people)
        return folder

    def warehouse(self) -> dict[str, str]:
        """Return libpq's variables for an empty warehouse."""
        made = make_warehouse(self.postgres)
        self._databases.append(made["PGDATABASE"])
        return made

    def delivery(self, data: Path, *, as_process: bool = False, **variables: object) -> Delivery:
        """Return a delivery with nothing done yet, and an empty warehouse."""
        runner = ProcessRunner() if as_process else self.runner
        made = Delivery(self.folder / f"delivery-{len(self._made)}", variables=self.warehouse() | variables, runner=runner)
        self._made.append(made)
        deliver(made, data)
        return made

    def clear(self) -> None:
        """Remove the warehouses and the stages' files: ten million records fill gigabytes."""
        with contextlib.closing(servers.connect(self.postgres)) as connection:
            connection.autocommit = True
            for name in self._databases:
                connection.cursor().execute(f"DROP DATABASE {name}")
        self._databases.clear()
        for delivery in self._made:
            shutil.rmtree(delivery.artifacts, ignore_errors=True)


@contextlib.contextmanager
def laboratory() -> Iterator[Lab]:
    """Give a laboratory; it is gone at the end."""
    with tempfile.TemporaryDirectory() as name, network() as on, postgres_container(on, Path(name)) as (postgres, there):
        Path(name).chmod(0o755)
        yield Lab(Path(name), on, postgres, there)


def deliver(delivery: Delivery, data: Path) -> None:
    """Let a delivery's stages read a folder of batches."""
    delivery.folder.mkdir(exist_ok=True)
    delivery.data.unlink(missing_ok=True)
    delivery.data.symlink_to(data)


def timed(delivery: Delivery, stage: str, batch: str | None = "bench", *arguments: str, expect: int = DONE) -> float:
    """Run a stage; return the seconds that it took, its container's start and end included."""
    return seconds(lambda: delivery.stage(stage, batch, *arguments, expect=expect), 1)


def most_memory(delivery: Delivery, stage: str, batch: str | None = "bench", *arguments: str) -> float:
    """Run a stage as a process; return the most memory that it had, in megabytes.

    It is asked again and again: what the kernel tells at the end counts the process that started it too.
    """
    process, most = delivery.runner.start(stage, arguments, delivery.given(batch)).process, 0
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(process.communicate)
        while not said.done():
            with contextlib.suppress(OSError):  # it has ended
                status = Path(f"/proc/{process.pid}/status").read_text()
                if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                    most = int(found[1])
            time.sleep(0.01)
    assert process.returncode == 0, said.result()
    return most * 1024 / 1e6
