"""A second Docker engine, empty and without any network: what a machine that nothing reaches has."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runners import wait_until
from support import base_environment

# In a network namespace of its own: nothing but the loopback device (flags 1: IFF_UP), which published ports need.
START = """
import fcntl, os, socket, struct, sys
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 1))
os.execvp("dockerd", ["dockerd", *sys.argv[1:]])
"""


class Engine:
    """An engine whose data live in a folder; clients find it by the variables of `environment`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = base_environment() | {"DOCKER_HOST": f"unix://{home}/socket"}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        home = self.home
        command = ["unshare", "--net", "python3", "-c", START, f"--data-root={home}/data", f"--exec-root={home}/exec",
                   f"--pidfile={home}/pid", f"--host=unix://{home}/socket", "--bridge=none",
                   "--containerd-namespace=heart-test", "--containerd-plugins-namespace=heart-test-plugins"]  # fmt: skip
        with (home / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: subprocess.run(["docker", "info"], env=self.environment, capture_output=True).returncode == 0)

    def stop(self) -> None:
        """Stop it with all its containers, as a machine that is shut down does."""
        assert self.process
        self.process.terminate()
        self.process.wait(90)


@contextmanager
def engine_without_network() -> Iterator[Engine]:
    """Run an engine as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        engine = Engine(Path(folder))
        engine.start()
        try:
            yield engine
        finally:
            engine.stop()
