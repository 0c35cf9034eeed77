"""Nothing here depends on locale or wall clock: texts are UTF-8, durations are monotonic.

A C locale, a clock that is set back and a machine in another language change nothing.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    [ROOT / "tempsamp.py"]
    + [path for house in ("common", "services", "jobs") for path in (ROOT / house).rglob("*.py")]
)
OPENERS = {"open": 1, "read_text": 0, "write_text": 1, "TextIOWrapper": 1, "fdopen": 1}
"""Of text files → position of the mode, or of the encoding where there is no mode."""
OTHERS = {"self", "os", "av", "gzip", "opener", "_staging", "staging", "fleet", "reader"}
"""What has an `open` or `read_text` of another kind."""

OF_CLOCKS = {
    "jobs/dash/folder.py": "the age of a file, which has a wall-clock time",
    "jobs/doctor/fleet.py": "compares clocks",
    "jobs/doctor/neighbours.py": "compares clocks",
}
"""File → why it reads the wall clock."""


def calls(source: str) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def name_of(function: ast.expr) -> tuple[str, str]:
    """`a.b.open` → ("b", "open")."""
    if isinstance(function, ast.Attribute):
        owner = function.value
        if isinstance(owner, ast.Attribute):
            return owner.attr, function.attr
        return (owner.id if isinstance(owner, ast.Name) else ""), function.attr
    return "", function.id if isinstance(function, ast.Name) else ""


def is_text_without_encoding(call: ast.Call) -> bool:
    keywords = {word.arg: word.value for word in call.keywords}
    owner, name = name_of(call.func)
    if isinstance(keywords.get("text"), ast.Constant) and name in ("run", "Popen", "check_output"):
        return "encoding" not in keywords
    if name not in OPENERS or owner in OTHERS or "encoding" in keywords:
        return False
    constants = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    mode = keywords.get("mode")
    if isinstance(mode, ast.Constant):
        constants.append(mode.value)
    is_binary = any(
        isinstance(value, str) and "b" in value and len(value) <= 3 for value in constants
    )
    return not (is_binary or "utf-8" in constants)


def is_wall_clock(call: ast.Call) -> bool:
    return name_of(call.func) in (("time", "time"), ("time", "time_ns"), ("datetime", "utcnow"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.open()", True),
        ("open(path, 'w')", True),
        ("path.read_text(errors='replace')", True),
        ("path.write_text(text)", True),
        ("subprocess.run(line, text=True)", True),
        ("path.open('rb')", False),
        ("open(path, mode='wb')", False),
        ("path.open('a', encoding='utf-8')", False),
        ("io.TextIOWrapper(file, 'utf-8')", False),
        ("os.open(path, os.O_RDONLY)", False),
    ],
)
def test_a_text_without_encoding_is_found(source: str, found: bool) -> None:
    (call,) = calls(source)
    assert is_text_without_encoding(call) is found


@pytest.mark.parametrize(
    "judge", [is_text_without_encoding, is_wall_clock], ids=["encodings", "clocks"]
)
def test_no_call_depends_on_its_surroundings(judge: type) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:80]}"
        for path in FILES
        for call in calls(path.read_text(encoding="utf-8"))
        if judge(call) and not (judge is is_wall_clock and str(path.relative_to(ROOT)) in OF_CLOCKS)
    ]
    assert wrong == []
