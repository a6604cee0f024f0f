"""What the tests of train, evaluate and predict share: one delivery of real data, taken through training once."""

import pytest

from runners import HARDENED, ProcessRunner, inspect, server, wait_until
from support import ROOT, Delivery, Warehouse, make_database, make_warehouse, mlflow_on


@pytest.fixture(scope="session", params=["process", pytest.param("container", marks=pytest.mark.docker)])
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
    database = make_database(postgres)["PGDATABASE"]
    options = [
        *HARDENED,
        "--mount=type=volume,destination=/artifacts",
        f"--volume={postgres['PGPASSFILE']}:/run/secrets/pgpass:ro",
        "--env=PGPASSFILE=/run/secrets/pgpass",
        f"--env=MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://postgres@postgres:5432/{database}",
    ]
    with server("heart/mlflow:dev", "mlflow", 5000, runner.network, options) as (port, container):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy", 120)
        runner.addresses[address] = "http://mlflow:5000"
        yield runner, postgres, address


@pytest.fixture(scope="session")
def registry(services):
    """Give the address of the MLflow server that `trained` uses."""
    return services[2]


@pytest.fixture(scope="session")
def trained(services, tmp_path_factory):
    """Load Cleveland and Hungary, train, evaluate; gives the delivery, its warehouse and how the two stages ended."""
    runner, postgres, address = services
    warehouse = Warehouse(make_warehouse(postgres))
    reach = warehouse.environment | {"MLFLOW_TRACKING_URI": address}
    delivery = Delivery(tmp_path_factory.mktemp("trained"), variables=reach, runner=runner)
    delivery.data.symlink_to(ROOT / "data")
    for batch in ("cleveland", "hungary"):
        delivery.etl(batch)
    return delivery, warehouse, {"train": delivery.stage("train"), "evaluate": delivery.stage("evaluate")}
