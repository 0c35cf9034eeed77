"""Fixtures every test may ask for, and the order of the files."""

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

# What a failed assertion of a helper found is shown as a test's own would be. Before any import: a
# plugin of the command line (tests/compose) has brought its folder already.
PACKAGES = {f"tests.{path.name}" for path in Path(__file__).parent.iterdir() if path.is_dir()}
pytest.register_assert_rewrite(*(PACKAGES - sys.modules.keys()))

# xdist sets it in its workers, and then what they print is wrapped as on a terminal.
os.environ.pop("COLUMNS", None)

pytest_plugins = [
    "tests.fixtures.servers.places",
    "tests.fixtures.servers.redis_server",
    "tests.fixtures.scorers.scorer_packages",
    "tests.fixtures.learner.warm",
]

RING = Path(__file__).parent / "ring"
CHAOS = Path(__file__).parent / "chaos"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--screenshots`: pictures of pages are written into docs/images."""
    parser.addoption("--screenshots", action="store_true", help="write docs/images/dash-*.png")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slowest files first: of two processes (`make test`), none is left alone with one.

    What takes minutes is left out unless `-m` names it.
    """
    items.sort(key=lambda item: item.path.parent != RING)
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("chaos")]
    if slow:
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes that share files, one takes all that share a ring: it starts once."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadFilesAndRing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return str(RING) if shares_a_ring(config.rootpath / file) else file

    return LoadFilesAndRing(config, log)


@functools.cache
def shares_a_ring(file: Path) -> bool:
    """Whether its tests ask for the ring of `tests/ring/conftest.py`, which takes 30 s to start."""
    wanted = r"^from tests\.ring\.conftest import .*\bRing\b"
    return re.search(wanted, file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out; each process of several leaves out the same."""
    if not terminalreporter.config.option.markexpr and any_slow(terminalreporter.config.args):
        terminalreporter.write_line("tests marked chaos were left out: `make chaos-test` runs them")


def any_slow(arguments: list[str]) -> bool:
    """Whether what was asked for holds tests that are left out."""
    asked = [Path(argument.partition("::")[0]).resolve() for argument in arguments]
    return any(path == CHAOS or path in CHAOS.parents or CHAOS in path.parents for path in asked)
