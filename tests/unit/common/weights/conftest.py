"""Where a test runs."""

import pytest

from tests.fixtures.weights.devices import skip_without


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """`cpu`, or `cuda:0` where there is one."""
    skip_without(request.param)
    return str(request.param)
