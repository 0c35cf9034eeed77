"""The file list of docs/architecture.md names each file of our folders, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("services", "common", "jobs")


def listed() -> set[str]:
    """Files that the list names."""
    block = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("<!-- layout -->")[1]
    folder, names = "", set()
    for line in block.splitlines():
        if heading := re.match(r"^([\w/]+)/$", line):
            folder = heading[1]
        elif entry := re.match(r"^  (\w+\.(?:py|html\.j2))  ", line):
            names.add(f"{folder}/{entry[1]}")
    return names


def test_file_list_equals_the_tree() -> None:
    tree = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for pattern in ("*.py", "*.j2")
        for path in (ROOT / folder).rglob(pattern)
        if path.name != "__init__.py"
    }
    assert listed() == tree
