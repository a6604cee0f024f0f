"""What the tests of train, evaluate and predict share: one delivery of real data, taken through training once."""

import pytest

from support import ROOT, Delivery, Warehouse, make_database, make_warehouse, mlflow_on


@pytest.fixture(scope="session")
def registry(postgres, tmp_path_factory):
    """Run an MLflow server for `trained` alone: what other tests register must not be found there."""
    with mlflow_on(make_database(postgres), tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="session")
def trained(postgres, registry, tmp_path_factory):
    """Load Cleveland and Hungary, train, evaluate; gives the delivery, its warehouse and how the two stages ended."""
    warehouse = Warehouse(make_warehouse(postgres))
    delivery = Delivery(tmp_path_factory.mktemp("trained"), variables=warehouse.environment | {"MLFLOW_TRACKING_URI": registry})
    delivery.data.symlink_to(ROOT / "data")
    for batch in ("cleveland", "hungary"):
        delivery.etl(batch)
    return delivery, warehouse, {"train": delivery.stage("train"), "evaluate": delivery.stage("evaluate")}
