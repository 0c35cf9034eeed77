"""Rows split by video: which are drawn, that nothing is lost, what is refused."""

import functools
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import Result

from common.errors import ConfigError, OutputError
from jobs.data.split import Part, Report, command, drawn, split
from tests.fixtures.pages.commands import ended
from tests.fixtures.rows import event_row, write_rows
from tests.fixtures.servers.places import no_room

run = functools.partial(ended, command)


def written(folder: Path, videos: Sequence[str]) -> Path:
    """A row about each."""
    rows = [event_row(number) | {"videos": [video]} for number, video in enumerate(videos)]
    path = folder / "rows.jsonl"
    write_rows(path, rows)
    return path


def videos_of(path: Path) -> list[str]:
    return [json.loads(line)["videos"][0] for line in path.read_bytes().splitlines()]


def asked(folder: Path, *more: object) -> Result:
    places = ("-i", folder / "rows.jsonl", "-o", folder / "train", "--held-out", folder / "held")
    return run(*places, *more)


MANY = [f"{number % 100}.mp4" for number in range(400)]
"""Four rows a video, far apart."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    videos=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30).filter(
        lambda videos: len(set(videos)) > 1
    ),
    seed=st.integers(0, 5),
)
def test_no_video_is_in_both_and_no_row_is_lost(
    videos: list[str], seed: int, tmp_path: Path
) -> None:
    source = written(tmp_path, videos)
    train, held = tmp_path / "train", tmp_path / "held"
    report = split(source, output=train, held_out=held, rows=1, seed=seed)
    apart = set(videos_of(held))
    assert apart.isdisjoint(videos_of(train))
    lines = source.read_bytes().splitlines()
    by_side = [
        [line for line in lines if (json.loads(line)["videos"][0] in apart) == is_held]
        for is_held in (False, True)
    ]
    # Whole lines, in the order of the input.
    assert [train.read_bytes().splitlines(), held.read_bytes().splitlines()] == by_side
    assert report == Report(
        *(
            Part(len(side), len({json.loads(line)["videos"][0] for line in side}))
            for side in by_side
        )
    )


def test_rows_are_counted_and_shown(tmp_path: Path) -> None:
    written(tmp_path, MANY)
    shown = asked(tmp_path, "--rows", 41)
    assert shown.exit_code == 0
    # Whole videos of four rows each.
    assert len(videos_of(tmp_path / "held")) == 44
    words = [line.split("│") for line in shown.output.splitlines()]
    figures = [[word.strip() for word in line if word.strip()] for line in words]
    assert ["to train on", "356", "89"] in figures
    assert ["held out", "44", "11"] in figures


@pytest.mark.parametrize(("share", "held"), [(0.1, 40), (0.99, 396), (0.0001, 4)])
def test_a_share_is_one_of_rows(tmp_path: Path, share: float, held: int) -> None:
    written(tmp_path, MANY)
    asked(tmp_path, "--share", share)
    assert len(videos_of(tmp_path / "held")) == held


def test_a_seed_draws_the_same_videos_in_whatever_order_rows_are() -> None:
    there = dict.fromkeys(MANY, 4)
    first = drawn(there, rows=80, seed=3)
    assert len(first) == 20
    assert drawn(dict(reversed(there.items())), rows=80, seed=3) == first
    assert drawn(there, rows=80, seed=4) != first
    assert drawn(there, rows=40, seed=3) < first


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    written(tmp_path, MANY)
    asked(tmp_path, "--rows", 40)
    once = [(tmp_path / name).read_bytes() for name in ("train", "held")]
    asked(tmp_path, "--rows", 40)
    assert [(tmp_path / name).read_bytes() for name in ("train", "held")] == once


def test_windows_of_one_video_stay_together(tmp_path: Path) -> None:
    windows = [{"start_s": 10.0 * k, "end_s": 10.0 * k + 10.0} for k in range(6)]
    rows = [
        event_row(number) | {"videos": [f"{number % 2}.mp4"]} | window
        for number, window in enumerate(windows)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    asked(tmp_path, "--rows", 1)
    assert [len(set(videos_of(tmp_path / name))) for name in ("train", "held")] == [1, 1]


def test_a_packed_file_is_read(tmp_path: Path) -> None:
    source = written(tmp_path, MANY)
    source.write_bytes(gzip.compress(source.read_bytes()))
    asked(tmp_path, "--rows", 4)
    assert len(videos_of(tmp_path / "train")) == 396


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--rows, --share: found neither, wanted one of them"),
        (("--rows", 4, "--share", 0.5), "--rows, --share: found both"),
        *(
            (("--share", share), f"--share: found {share}, wanted more than 0")
            for share in ("0", "1", "-0.5", "1.5", "nan")
        ),
        (("--rows", 397), "found 400 rows of 100 videos, wanted a video that is left"),
        (("--rows", 4000), "whole ones with 4,000 rows"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    written(tmp_path, MANY)
    with pytest.raises(ConfigError, match=said):
        asked(tmp_path, *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.parametrize("line", ["{", '{"video": "a.mp4"}', '{"videos": []}'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    source = written(tmp_path, MANY)
    source.write_text(source.read_text() + line)
    with pytest.raises(ConfigError, match=r"rows.jsonl, line 401: bad .*wanted trainer rows"):
        asked(tmp_path, "--rows", 4)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(ConfigError, match="found 0 rows of 0 videos"):
        asked(tmp_path, "--rows", 4)


def test_no_file_takes_the_place_of_another(tmp_path: Path) -> None:
    source = written(tmp_path, MANY)
    before, other = source.read_bytes(), tmp_path / "other"
    with pytest.raises(ConfigError, match=r"--output: found .*, which would overwrite the input"):
        split(source, output=source, held_out=other, rows=4)
    with pytest.raises(ConfigError, match=r"--held-out: found .*, which would overwrite the input"):
        split(source, output=other, held_out=source, rows=4)
    with pytest.raises(ConfigError, match=r"--held-out: found .*, which is --output"):
        split(source, output=other, held_out=other, rows=4)
    assert source.read_bytes() == before


def test_a_full_disk_leaves_older_files(tmp_path: Path) -> None:
    source = written(tmp_path, MANY)
    train, held = tmp_path / "train", tmp_path / "held"
    train.write_text("old")
    held.write_text("old")
    with (
        no_room(2000),
        pytest.raises(OutputError, match=r"--output, --held-out: .*older files stay"),
    ):
        split(source, output=train, held_out=held, rows=4)
    assert (train.read_text(), held.read_text()) == ("old", "old")
