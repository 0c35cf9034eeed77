"""Fixtures every test may ask for, and which tests share a process.

`make test` runs two processes (pytest-xdist). What is expensive to start is started once: a file's
tests stay together, and so do all files that use the ring of this session.
"""

from pathlib import Path

import pytest

pytest_plugins = ["tests.fixtures.redis_server", "tests.fixtures.scorer_packages"]

RING = Path(__file__).parent / "ring"
OWN_PROCESSES = {"test_demo.py"}
"""Files of the ring's folder that start everything themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group for `--dist loadgroup`; the longest groups start first, so that none is left alone."""
    for item in items:
        in_ring = item.path.parent == RING and item.path.name not in OWN_PROCESSES
        item.add_marker(pytest.mark.xdist_group("ring" if in_ring else str(item.path)))
    items.sort(key=lambda item: item.path.parent != RING)
