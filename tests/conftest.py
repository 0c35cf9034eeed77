"""Fixtures every test may ask for, and the order of the files."""

from pathlib import Path

import pytest

# What a failed assertion of a helper found is shown as a test's own would be. Before any import.
pytest.register_assert_rewrite(
    *(f"tests.{folder.name}" for folder in Path(__file__).parent.iterdir() if folder.is_dir())
)

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out; each process of several leaves out the same."""
    if not terminalreporter.config.option.markexpr and any_slow(terminalreporter.config.args):
        terminalreporter.write_line("tests marked chaos were left out: `make chaos-test` runs them")


def any_slow(arguments: list[str]) -> bool:
    """Whether what was asked for holds tests that are left out."""
    asked = [Path(argument.partition("::")[0]).resolve() for argument in arguments]
    return any(path == CHAOS or path in CHAOS.parents or CHAOS in path.parents for path in asked)
