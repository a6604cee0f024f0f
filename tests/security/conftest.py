"""What the tests of security share."""

from typing import Any

import pytest
from attack import Attacked, attack

from stacks import Stack


@pytest.fixture(scope="session")
def attacked(stack: Stack, first: dict[str, Any]) -> Attacked:
    """Run the models' stages while somebody has taken the worker over."""
    return attack(stack)
