"""One rank of a learner, and a fleet that ends with the test."""

from collections.abc import Iterator

import pytest

from services.learner import parallel
from services.learner.parallel import Ranks
from tests.fixtures.weight_fleet import Fleet


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Left at the end of the module: a process has one default group."""
    ranks = parallel.start_ranks("cpu", timeout_s=60)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def forking() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


@pytest.fixture
def fleet(forking: Fleet) -> Iterator[Fleet]:
    """None to begin with; all of them end with the test."""
    yield forking
    forking.clear()
