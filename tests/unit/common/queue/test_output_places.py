"""Every option that names an output is tried before the work: one message, nothing done.

Also where it names what the command reads. The inputs of the first test could not be worked on, so
that a command which looked at them first would say so.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer

import tempsamp
from common.errors import ConfigError
from tests.fixtures.servers.places import ReadOnly, no_room

COMMANDS: Sequence[tuple[str, str, str]] = (
    ("data convert --input {gone}", "--output", "rows.jsonl"),
    ("data inspect {rows}", "--html", "page.html"),
    ("data inspect {rows} --check-videos", "--failures", "bad.jsonl"),
    ("data split --input {gone} --rows 1 --held-out {new}", "--output", "rows.jsonl"),
    ("data split --input {gone} --rows 1 --output {new}", "--held-out", "rows.jsonl"),
    ("data preprocess --input {rows} --video-root {folder}", "--cache", ""),
    ("data preprocess --input {rows} --video-root {folder} --cache {new}", "--failures", "f.jsonl"),
    ("data import-pt --input {rows} --pt-dir {folder} --video-root {folder}", "--cache", ""),
    ("eval --bench {gone} --video-root {folder} --model {gone}", "--out", ""),
    ("eval score {gone} --bench rows", "--json", "score.json"),
    ("compare {gone} {gone}", "--json", "compare.json"),
    ("ground {gone} query --model {gone}", "--out", "sheet.png"),
    ("ground {gone} query --model {gone} --out {new}.png", "--cut", "clip.mp4"),
    ("reframe center --index {index} --video-dir {folder}", "--out", "s.jsonl"),
    ("reframe qwen --index {index} --video-dir {folder} --model {gone}", "--out", "s.jsonl"),
    ("reframe show {submission} --video-dir {folder} --id a", "--out", "clip.mp4"),
)
IDS = [f"{line.split(' {')[0]} {option}" for line, option, _ in COMMANDS]


@pytest.fixture
def places(read_only: ReadOnly, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What stands in the lines above."""
    folder = read_only.beside
    monkeypatch.chdir(folder)
    rows, index, submission = (folder / name for name in ("rows.jsonl", "i.json", "s.jsonl"))
    for path in (folder / "taken", folder / "taken.mp4", folder / "taken.png"):
        path.mkdir()
    row = {"problem": "p", "answer": "<answer> 1 to 2 </answer>", "videos": ["gone.mp4"]}
    rows.write_text(json.dumps(row | {"problem_type": "temporal grounding"}) + "\n")
    entry = {"video_id": "a", "targetRatioWH": [9, 16]}
    index.write_text(json.dumps([entry]))
    submission.write_text(
        json.dumps(entry | {"predictions": [{"frame": 0, "bboxes": [0, 0, 9]}]}) + "\n"
    )
    return {
        "gone": str(folder / "gone.jsonl"),
        "new": str(folder / "new"),
        "folder": str(folder),
        "rows": str(rows),
        "index": str(index),
        "submission": str(submission),
    }


def run(line: str, places: dict[str, str], *more: str) -> None:
    command = typer.main.get_command(tempsamp.app)
    words = [word.format(**places) for word in line.split()]
    command.main([*words, *more], standalone_mode=False)


@pytest.mark.parametrize(("line", "option", "name"), COMMANDS, ids=IDS)
def test_a_place_without_permission_or_room_is_refused_before_the_work(
    line: str,
    option: str,
    name: str,
    places: dict[str, str],
    read_only: ReadOnly,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(places["folder"])
    before = sorted(folder.iterdir())
    wrong = [(folder / "rows.jsonl" / name, "Not a directory")]
    if name:
        taken = (folder / "taken").with_suffix(Path(name).suffix * (option in ("--out", "--cut")))
        wrong.append((taken if taken.is_dir() else folder / "taken", "a folder|is a directory"))
    for output, said in wrong:
        with pytest.raises((ConfigError, typer.BadParameter), match=said) as refused:
            run(line, places, option, str(output))
        of_typer = isinstance(refused.value, typer.BadParameter)
        message = refused.value.format_message() if of_typer else str(refused.value)
        assert option in message
    with no_room(0), pytest.raises(ConfigError, match=r"^--\w+: .* MB free\), wanted a f"):
        run(line, places, option, str(folder / "out" / name))
    with read_only.user(), pytest.raises(ConfigError, match=rf"^{option}: .*Permission denied"):
        run(line, places, option, str(read_only.folder / "out" / name))
    assert sorted(folder.iterdir()) == before
    assert capsys.readouterr().out == ""


def test_rows_in_a_protected_folder_want_a_place_for_their_failures(
    places: dict[str, str], read_only: ReadOnly
) -> None:
    line = "data preprocess --video-root {folder} --cache {new}"
    with read_only.user(), pytest.raises(ConfigError, match=r"--failures: found .*protected: Perm"):
        run(line, places, "--input", str(read_only.file))


OVERWRITING: Sequence[tuple[str, str, str]] = (
    ("data convert --input {rows}", "--output", "rows.jsonl"),
    ("data convert --input {gone} --duration-source {rows}", "--output", "rows.jsonl"),
    ("data inspect {rows}", "--html", "rows.jsonl"),
    ("data split --input {rows} --rows 1 --held-out {new}", "--output", "rows.jsonl"),
    ("data split --input {rows} --rows 1 --output {new}", "--held-out", "rows.jsonl"),
    ("data inspect {rows} --check-videos", "--failures", "rows.jsonl"),
    ("data inspect {rows} --check-videos", "--failures", "gone.mp4"),
    (
        "data preprocess --input {rows} --video-root {folder} --cache {new}",
        "--failures",
        "rows.jsonl",
    ),
    (
        "data preprocess --input {rows} --video-root {folder} --cache {new}",
        "--failures",
        "gone.mp4",
    ),
    *(
        (
            "data import-pt --input {rows} --pt-dir {folder} --video-root {folder} --cache {new}",
            "--failures",
            name,
        )
        for name in ("rows.jsonl", "gone.mp4", "old.pt")
    ),
    ("eval score {rows} --bench rows", "--json", "rows.jsonl"),
    ("eval score {gone} --bench rows --gt {rows}", "--json", "rows.jsonl"),
    ("compare {rows} {gone}", "--json", "rows.jsonl"),
    ("compare {gone} {rows}", "--json", "rows.jsonl"),
    ("compare {gone} {gone} --gt {rows}", "--json", "rows.jsonl"),
    ("compare {folder}/run {gone}", "--json", "run/test/predictions-1-of-2.jsonl"),
    ("compare {gone} {folder}/run/test", "--json", "run/test/summary.json"),
    ("ground {folder}/film.png query --model {gone}", "--out", "film.png"),
    ("ground {folder}/a.mp4 query --model {gone} --out {new}.png", "--cut", "a.mp4"),
    ("reframe center --index {index} --video-dir {folder}", "--out", "i.json"),
    ("reframe center --index {index} --video-dir {folder}", "--out", "a.mp4"),
    ("reframe qwen --index {index} --video-dir {folder} --model {gone}", "--out", "i.json"),
    ("reframe qwen --index {index} --video-dir {folder} --model {gone}", "--out", "a.mp4"),
    (
        "reframe qwen --index {index} --video-dir {folder} --endpoint http://h --config {rows}",
        "--out",
        "rows.jsonl",
    ),
    ("reframe show {submission} --video-dir {folder} --id a", "--out", "a.mp4"),
    ("reframe show {folder}/film.mp4 --video-dir {folder} --id a", "--out", "film.mp4"),
)


@pytest.mark.parametrize(("line", "option", "name"), OVERWRITING)
def test_an_input_is_never_overwritten(
    line: str, option: str, name: str, places: dict[str, str]
) -> None:
    folder = Path(places["folder"])
    (folder / "run/test").mkdir(parents=True)
    made = ("gone.mp4", "a.mp4", "old.pt", "film.png", "run/test/predictions-1-of-2.jsonl")
    for junk in (*made, "run/test/summary.json"):
        (folder / junk).write_bytes(b"junk")
    rows, submission = Path(places["rows"]), Path(places["submission"])
    rows.write_text(json.dumps(json.loads(rows.read_text()) | {"preprocessed_video": "old.pt"}))
    (folder / "film.mp4").write_bytes(submission.read_bytes())
    before = (folder / name).read_bytes()
    link = folder / "link" / Path(name).name
    link.parent.mkdir()
    link.symlink_to(folder / name)
    for output in (folder / name, link):
        with pytest.raises(ConfigError, match=rf"^{option}: .*, which would overwrite the input"):
            run(line, places, option, str(output))
    assert (folder / name).read_bytes() == before
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("line", "option", "suffix"),
    [
        ("data convert --output {rows} --input", "--output", ".rejected.jsonl"),
        (
            "data preprocess --input {rows} --video-root {folder} --cache {new} --input",
            "--failures",
            ".failed.jsonl",
        ),
    ],
)
def test_what_is_written_beside_a_file_overwrites_no_input_either(
    line: str, option: str, suffix: str, places: dict[str, str]
) -> None:
    beside = Path(places["rows"] + suffix)
    beside.write_bytes(Path(places["rows"]).read_bytes())
    with pytest.raises(ConfigError, match=rf"^{option}: .*, which would overwrite the input"):
        run(line, places, str(beside))
    assert beside.read_bytes() == Path(places["rows"]).read_bytes()
