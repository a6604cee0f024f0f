"""The servers that the tests use are real: PostgreSQL and MLflow, started once, listening on this machine only."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

import support  # noqa: F401 - makes dags/ and embedded/ importable
from runners import ContainerRunner, ProcessRunner, mlflow_container, network, postgres_container
from stacks import Stack, running_stack
from support import ENVIRONMENTS, ROOT, STAGES, Delivery, Warehouse, make_database, make_warehouse, mlflow_on

ENGINE = bool(os.environ.get("REQUIRE_DOCKER")) or (
    shutil.which("docker") is not None and os.system("docker info >/dev/null 2>&1") == 0  # noqa: S605
)
# Where the tests of the running system are.
SYSTEM = ("tests/test_stack.py", "tests/security/", "tests/faults/test_running_system.py")
# Needs nothing that other tests share, and comes where it evens out the two halves.
BENCH = "tests/test_bench.py"


class TwoShares(LoadScopeScheduling):
    """Two processes share the work: one has the benchmark's test and those of the running system, the other the rest."""

    def _split_scope(self, nodeid: str) -> str:
        return "system" if nodeid.startswith((BENCH, *SYSTEM)) else "stages"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TwoShares:
    """Let xdist share the tests out so that each process makes what its tests share, once."""
    return TwoShares(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say loudly that what needs Docker does not run without an engine; fail instead where Docker is required.

    The benchmark's comes before the system is there; of the system's, those come first that look at it undisturbed.
    """
    items.sort(key=lambda item: (item.nodeid.startswith(SYSTEM), item.path.name != "test_stack.py"))
    for item in items:
        assert ("stack" in getattr(item, "fixturenames", ())) <= item.nodeid.startswith(SYSTEM), "add its file to SYSTEM"
    if ENGINE:
        return
    for item in items:
        if item.get_closest_marker("docker") and not os.environ.get("REQUIRE_DOCKER"):
            item.add_marker(pytest.mark.skip(reason="NOT RUN: no Docker engine answers; make docker-engine starts one"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """End with a line that nobody overlooks where container tests were not run."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "no Docker engine" in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"NOT RUN: {len(skipped)} tests of the images, for want of a Docker engine", red=True, bold=True
        )


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run PostgreSQL as a process; gives libpq's variables."""
    import servers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "STATE", tmp_path_factory.mktemp("postgres"))
        with servers.postgres() as environment:
            yield environment


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ContainerRunner, dict[str, str]]]:
    """Run PostgreSQL as a container on a network; gives a runner of stages there, and libpq's variables for this side."""
    with network() as name, postgres_container(name, tmp_path_factory.mktemp("engine")) as (environment, addresses):
        yield ContainerRunner(name, addresses), environment


@pytest.fixture(params=["process", pytest.param("container", marks=pytest.mark.docker)])
def runner(request: pytest.FixtureRequest) -> ProcessRunner | ContainerRunner:
    """Give both ways to run a stage, one after the other."""
    return ProcessRunner() if request.param == "process" else request.getfixturevalue("engine")[0]


@pytest.fixture
def warehouse(runner: ProcessRunner | ContainerRunner, request: pytest.FixtureRequest) -> Warehouse:
    """Give an empty warehouse of the test's own, in the PostgreSQL that the runner's stages reach."""
    if isinstance(runner, ProcessRunner):
        return Warehouse(make_warehouse(request.getfixturevalue("postgres")))
    return Warehouse(make_warehouse(request.getfixturevalue("engine")[1]))


@pytest.fixture
def delivery(tmp_path: Path, runner: ProcessRunner | ContainerRunner) -> Delivery:
    """Give an empty folder of batches."""
    return Delivery(tmp_path, runner=runner)


@pytest.fixture
def loading(delivery: Delivery, warehouse: Warehouse) -> Delivery:
    """Give an empty folder of batches whose stages reach an empty warehouse."""
    delivery.variables = dict(warehouse.environment)
    return delivery


@pytest.fixture(scope="session")
def mlflow(postgres: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an MLflow server; gives its address."""
    with mlflow_on(make_database(postgres), tmp_path_factory.mktemp("mlflow")) as address:
        yield address


# Where there is an engine, containers show what processes would; those that train have their tests beside these.
@pytest.fixture(scope="session", params=["container" if ENGINE else "process"])
def services(request, tmp_path_factory):
    """Run PostgreSQL and an MLflow server for `trained` alone: what other tests register must not be found there.

    Gives a runner of stages, libpq's variables and MLflow's address, both for this side.
    """
    folder = tmp_path_factory.mktemp("registry")
    if request.param == "process":
        postgres = request.getfixturevalue("postgres")
        with mlflow_on(make_database(postgres), folder) as address:
            yield ProcessRunner(), postgres, address
        return
    runner, postgres = request.getfixturevalue("engine")
    with mlflow_container(runner, postgres, make_database(postgres)["PGDATABASE"]) as address:
        yield runner, postgres, address


@pytest.fixture(scope="session")
def registry(services):
    """Give the address of the MLflow server that `trained` uses."""
    return services[2]


@pytest.fixture(scope="session")
def trained(services, tmp_path_factory):
    """Load Cleveland and Hungary, train, evaluate; gives the delivery, its warehouse and how Cleveland's stages ended."""
    runner, postgres, address = services
    warehouse = Warehouse(make_warehouse(postgres))
    # Two repeats tell the tests what ten would; the figures themselves are tested with ten.
    reach = warehouse.environment | {"MLFLOW_TRACKING_URI": address, "HEART_REPEATS": 2}
    delivery = Delivery(tmp_path_factory.mktemp("trained"), variables=reach, runner=runner)
    delivery.data.symlink_to(ROOT / "data")
    outcomes = delivery.etl("cleveland")
    delivery.etl("hungary")
    return delivery, warehouse, outcomes | {"train": delivery.stage("train"), "evaluate": delivery.stage("evaluate")}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Bring the whole system up on ports of its own, once for all tests of it; remove it with its data at the end."""
    data = tmp_path_factory.mktemp("deliveries")
    data.parent.chmod(0o755)
    shutil.copytree(ROOT / "data", data, dirs_exist_ok=True)
    data.chmod(0o755)
    with running_stack("heart-test", data, repeats=1, also="tests/faults/impatient.yaml") as stack:
        yield stack


@pytest.fixture(scope="session")
def first(stack: Stack) -> dict[str, Any]:
    """Run the whole pipeline on the data that come along; gives its summary."""
    done = stack.make("pipeline")
    assert done.returncode == 0, done.stdout + done.stderr + stack.compose("logs", "--tail", "60", "airflow-worker")
    for stage in STAGES:
        assert stage in done.stderr, "a line a stage"
    assert "out of fold" in done.stdout and "cleveland" in done.stdout
    return json.loads((ROOT / ".run" / "summary.json").read_text())


@pytest.fixture(autouse=True)
def at_rest(request: pytest.FixtureRequest) -> None:
    """Let each test of the running system find it at rest: a run that an earlier test set off would stand in its way."""
    if "stack" in request.fixturenames:
        request.getfixturevalue("stack").rest()


@pytest.fixture(scope="session", autouse=True)
def environments() -> None:
    """Tell how to make what the tests need where it is missing."""
    missing = [name for name in (*STAGES, "mlflow", "embedded", "tests", "bundle") if not (ENVIRONMENTS / name).is_dir()]
    if missing:
        pytest.exit(f"no environment for {', '.join(missing)}; run the tests with `make test`")
