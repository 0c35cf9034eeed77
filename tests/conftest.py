"""Fixtures every test may ask for, and the order of the files."""

from pathlib import Path

import pytest

pytest_plugins = ["tests.fixtures.servers.redis_server", "tests.fixtures.scorers.scorer_packages"]

RING = Path(__file__).parent / "ring"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first: of two processes (`make test`), none is left alone with one."""
    items.sort(key=lambda item: item.path.parent != RING)
