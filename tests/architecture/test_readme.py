"""README's layout table names each file of the services and of common, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("services/rollout", "services/reward", "services/learner", "common", "jobs")


def listed() -> set[str]:
    """Files that README's layout block names."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- layout -->")[1]
    folder, names = "", set()
    for line in block.splitlines():
        if heading := re.match(r"^(services/\w+|common|jobs)/", line):
            folder = heading[1]
            line = line[heading.end() :]
        found = re.match(r"^\s*((?:\w+/)?\w+\.(?:py|j2|html\.j2))\s", line)
        if found and folder:
            names.add(f"{folder}/{found[1]}")
    return names


def test_readme_layout_equals_the_tree() -> None:
    tree = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for pattern in ("*.py", "*.j2")
        for path in (ROOT / folder).rglob(pattern)
        if path.name != "__init__.py"
    }
    assert listed() == tree
