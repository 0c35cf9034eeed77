"""docs/cluster.md: its fifteen errors are messages of the code, and its plan is what is printed."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.fixtures.pages.documents import ROOT, example, run_script

PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
ERRORS = PAGE.split("\n## Fifteen errors\n")[1]
MESSAGES = re.findall(r"^### (\d+)\. .*?\n\n```\n(.*?)^```$", ERRORS, re.DOTALL | re.MULTILINE)
HEAVIEST = 12
"""A piece of a message shorter than this proves nothing."""


def text_of(node: ast.expr) -> str:
    """A string as it stands in the sources, a newline for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "\n"
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return "\n"


def strings(path: Path) -> Iterator[str]:
    """All strings of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Constant, ast.JoinedStr)):
            yield text_of(node)


@cache
def sources() -> str:
    """All strings of our sources."""
    paths = [path for house in ("common", "services") for path in (ROOT / house).rglob("*.py")]
    return "\n".join(text for path in paths for text in strings(path))


def pieces(line: str) -> list[str]:
    """What of a quoted line does not vary; values given as examples vary too."""
    for example_value in ("rollout.host", "'0.0.0.0'", "TEMPSAMP_TOKEN", "rollout.allow_remote"):
        line = line.replace(example_value, "…") if "anybody who reaches" in line else line
    line = line.replace("for 120 s", "for … s")
    line = line.replace("wanted a model folder, or an id: ORG/NAME or ORG/NAME@revision", "…")
    return [piece.strip(" :") for piece in line.split("…") if len(piece.strip(" :")) > 3]


def test_there_are_fifteen() -> None:
    assert [int(number) for number, _ in MESSAGES] == list(range(1, 16))


@pytest.mark.parametrize(("number", "text"), MESSAGES, ids=lambda value: str(value)[:2].strip())
def test_a_quoted_message_is_one_of_the_code(number: str, text: str) -> None:
    for line in text.splitlines():
        found = pieces(line)
        assert max(map(len, found)) >= HEAVIEST, line
        assert [piece for piece in found if piece not in sources()] == []


def test_a_message_that_nobody_prints_is_found() -> None:
    assert "this is no message of the project" not in sources()
    assert pieces("found … live replica(s) for … s") == ["found", "live replica(s) for"]


def test_the_plan_on_the_page_is_what_is_printed() -> None:
    block = example("plan")
    wide = {"COLUMNS": "120", "TERM": "dumb"}
    shown = run_script(block.script, cwd=ROOT, environ=wide, timeout_s=60)
    printed = {" ".join(line.split()) for line in shown.splitlines()}
    headings = ("tokens ", "learner rank ", "replica ", "ring ", "estimate ")
    for line in block.text.splitlines()[1:]:
        wanted = " ".join(line.split())
        bare = next((wanted[len(h) :] for h in headings if wanted.startswith(h)), wanted)
        assert any(found.endswith(bare) for found in printed), line


def test_the_secrets_on_the_page_are_private_and_what_slurm_wants(tmp_path: Path) -> None:
    run_script(
        example("secrets").script, cwd=tmp_path, environ={"HOME": str(tmp_path)}, timeout_s=60
    )
    secrets = tmp_path / ".config/tempsamp/secrets.env"
    assert secrets.stat().st_mode & 0o777 == 0o600
    lines = dict(line.split("=") for line in secrets.read_text().splitlines())
    assert set(lines) == {"TEMPSAMP_TOKEN", "TEMPSAMP_REDIS_PASSWORD"}
    assert all(re.fullmatch("[a-f0-9]{64}", value) for value in lines.values())
    assert len(set(lines.values())) == 2
