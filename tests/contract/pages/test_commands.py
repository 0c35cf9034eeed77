"""Commands on README and the pages of docs/ exist, and are run as they stand there.

Examples that need no model are run here; `tests/ring` runs those that do, `tests/compose` those of
docker, `tests/contract/pages/test_reward_examples.py` those that call the reward service.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.clips import make_clip
from tests.fixtures.pages.command_lines import leaf, of_tempsamp, unknown_options
from tests.fixtures.pages.documents import PAGES, ROOT, Block, blocks, example, run_script

SHELL = ("bash", "console")
SERVICE = "http://127.0.0.1:8100"
IMPOSSIBLE_HERE = ("GPU", "machine", "cluster")
RUNS_COMMANDS = (
    *("tempsamp ", "make ", "docker ", "kubectl ", "torchrun ", "curl ", "python ", "pip ", "$ "),
    *("mkdir ", "sbatch "),
)
INLINE = re.compile(r"`((?:tempsamp|make) [^`]+)`")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
TIMEOUT_S = 120


def named_in_tests() -> set[str]:
    """Examples that some test asks for."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    return {
        name
        for text in texts
        for name in re.findall(r"""(?:example|documented)\(["']([\w-]+)["']\)""", text)
    }


def lines_with_commands() -> Iterator[tuple[str, list[str]]]:
    """Where, and the words of each command, in blocks and in running text."""
    for block in blocks():
        # Those that call the reward service hold JSON over several lines.
        if block.language in SHELL and SERVICE not in block.text:
            for words in block.commands:
                yield f"{block.page}:{block.line}", words
    for page in PAGES:
        for snippet in INLINE.findall(page.read_text(encoding="utf-8")):
            yield page.name, shlex.split(snippet)


@pytest.mark.parametrize("block", blocks(), ids=lambda block: f"{block.page}:{block.line}")
def test_block_with_commands_is_run_or_says_why_not(block: Block) -> None:
    commands = [line for line in block.text.splitlines() if line.startswith(RUNS_COMMANDS)]
    if not commands:
        assert block.name is None
        assert block.needs is None
        return
    assert block.language in SHELL, "commands stand in bash or console blocks"
    if block.needs is not None:
        assert any(word in block.needs for word in IMPOSSIBLE_HERE)
    elif SERVICE not in block.text:
        assert block.name in named_in_tests()


def test_pages_have_examples() -> None:
    names = [block.name for block in blocks() if block.name is not None]
    assert len(names) >= 10
    assert len(names) == len(set(names))


def test_options_on_the_pages_exist() -> None:
    wrong = []
    for where, words in lines_with_commands():
        rest = of_tempsamp(words)
        if rest is None:
            continue
        command, rest = leaf(rest)
        wrong += [
            f"{where}: {' '.join(words)}: {option}" for option in unknown_options(command, rest)
        ]
        if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            wrong.append(f"{where}: {' '.join(words)}: no command {rest[0]}")
    assert not wrong


def test_targets_on_the_pages_exist() -> None:
    wanted = {words[1] for _, words in lines_with_commands() if words[0] == "make"}
    assert {"demo", "test"} <= wanted
    assert {name for name in wanted if name not in TARGETS and name != "bench-*"} == set()


def test_make_passes_its_knobs_on() -> None:
    for words in example("two-commands").commands:
        shown = subprocess.run(
            [*words, "--dry-run", "METHOD=grpo", "STEPS=5", "SEED=3", "RUN=mine", "RESUME=1"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if words == ["make", "demo"]:
            wanted = "tempsamp demo --method grpo --seed 3 --steps 5 --run mine --resume"
            assert wanted in " ".join(shown.replace("\\\n", " ").split())
        else:
            assert "pytest" in shown


def test_the_doctor_finds_this_environment_well(tmp_path: Path) -> None:
    block = example("doctor")
    shown = run_script(block.script, cwd=tmp_path, timeout_s=TIMEOUT_S)
    # An environment of another lock is warned of, and all else is as shown.
    names = [line[4:].split(":")[:2] for line in shown.splitlines() if not line.startswith(" ")]
    assert names[:-1] == [line[4:].split(":")[:2] for line in block.text.splitlines()[1:-1]]


def write_annotations(folder: Path) -> None:
    """A TimeLens file and its videos."""
    events = [{"query": "a shape moves", "span": [1.0, 3.0]}, {"query": "it rests", "span": [0, 2]}]
    for name, height_px in {"a": 48, "b": 64}.items():
        video = folder / f"videos/videos/didemo/{name}.mp4"
        make_clip(video, num_frames=32, fps=8.0, height_px=height_px)
    lines = [
        {"source": "didemo", "video_path": f"didemo/{name}.mp4", "duration": 4.0, "events": events}
        for name in "ab"
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "timelens-100k.jsonl").write_text(text, encoding="utf-8")


def test_annotations_become_rows_and_rows_a_cache(tmp_path: Path) -> None:
    write_annotations(tmp_path)
    (tmp_path / "run.toml").write_text((ROOT / "deploy/configs/demo.toml").read_text())
    shown = run_script(example("convert").script, cwd=tmp_path, timeout_s=TIMEOUT_S)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["spans"] for row in rows] == [[[1.0, 3.0]], [[0.0, 2.0]]] * 2
    assert "rows" in shown
    assert "<svg" in (tmp_path / "train.html").read_text()
    run_script(example("preprocess").script, cwd=tmp_path, timeout_s=TIMEOUT_S)
    assert len(list((tmp_path / "clips").glob("??/*/*.safetensors"))) == 2
    (tmp_path / "train.jsonl").rename(tmp_path / "rows.jsonl")
    run_script(example("split").script, cwd=tmp_path, timeout_s=TIMEOUT_S)
    for name in ("train", "heldout"):
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == 2


def test_anybodys_predictions_are_scored(tmp_path: Path) -> None:
    (tmp_path / "charades_sta_test.txt").write_text(
        "AAAAA 1.0 5.0##a person sits.\nBBBBB 2.0 4.0##a person stands.\n"
        "CCCCC 0.0 9.0##a person turns.\n"
    )
    found = {
        "0": {"timestamp": [[1.0, 5.0]], "query": "a person sits.", "vid": "AAAAA.mp4"},
        "1": {"timestamp": [[2.0, 3.0]], "query": "a person stands.", "vid": "BBBBB.mp4"},
    }
    (tmp_path / "vtg_llm.json").write_text(json.dumps(found))
    shown = run_script(example("eval-score").script, cwd=tmp_path, timeout_s=TIMEOUT_S)
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["protocols"]["exact"]["miou"]["mean"] == 75.0
    assert score["unanswered"] == 1
    assert "these predictions" in shown
    assert "published" in shown
