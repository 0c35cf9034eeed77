"""Pages: a front page of one sitting, links that lead somewhere, no path of anybody's machine."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
MAX_README_LINES = 160
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> list[str]:
    """Of its headings in their order, as a forge makes them."""
    titles = HEADING.findall(page.read_text(encoding="utf-8"))
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in contents, page.name


def test_the_index_of_decisions_is_their_order() -> None:
    """So an area stands in one place, and none is left out."""
    index = (ROOT / "DECISIONS.md").read_text(encoding="utf-8").split("\n## ")[0]
    linked = [link.removeprefix("#") for link in LINK.findall(index)]
    assert linked == anchors(ROOT / "DECISIONS.md")[1:]
    assert len(set(linked)) == len(linked)


def test_tracked_files_name_no_path_of_one_machine() -> None:
    """The folder above a checkout is nobody else's; its name stands in no file."""
    here = f"/{ROOT.parent.name}/{ROOT.name}"
    found = subprocess.run(
        ["git", "grep", "--fixed-strings", "--line-number", here],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""
