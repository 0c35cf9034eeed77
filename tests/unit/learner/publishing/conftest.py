"""One rank of a learner, and a fleet that ends with the test; on the CPU, and on a GPU."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from services.learner import parallel
from services.learner.parallel import Ranks
from tests.bench.publishing.bare import be_a_host_of_its_own
from tests.fixtures.weights.devices import DEVICES, skip_without
from tests.fixtures.weights.weight_fleet import Fleet


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """`cpu`, or `cuda:0` where there is one: the replicas share it with this process."""
    skip_without(request.param)
    with mock.patch.dict(os.environ):
        be_a_host_of_its_own("learner")
        yield request.param


@pytest.fixture(scope="module")
def ranks(device: str) -> Iterator[Ranks]:
    """Left at the end of the module: a process has one default group."""
    ranks = parallel.start_ranks(device.partition(":")[0], timeout_s=60)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def forking(device: str) -> Iterator[Fleet]:
    fleet = Fleet(device)
    yield fleet
    fleet.close()


@pytest.fixture
def fleet(forking: Fleet) -> Iterator[Fleet]:
    """None to begin with; all of them end with the test."""
    yield forking
    forking.clear()
