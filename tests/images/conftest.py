"""What the tests of train, evaluate and predict share: one delivery of real data, taken through training once."""

import pytest

from conftest import Warehouse, make_warehouse
from support import ROOT, Delivery


@pytest.fixture(scope="session")
def trained(postgres, mlflow, tmp_path_factory):
    """Load Cleveland and Hungary, train, evaluate; gives the delivery, its warehouse and how the two stages ended."""
    warehouse = Warehouse(make_warehouse(postgres))
    delivery = Delivery(tmp_path_factory.mktemp("trained"), variables=warehouse.environment | {"MLFLOW_TRACKING_URI": mlflow})
    delivery.data.symlink_to(ROOT / "data")
    for batch in ("cleveland", "hungary"):
        delivery.etl(batch)
    return delivery, warehouse, {"train": delivery.stage("train"), "evaluate": delivery.stage("evaluate")}
