"""Re-rooting: absolute paths stay, and doing it twice changes nothing; suffixes of ids."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.data.annotations.paths import OnDisk, Rerooting


@pytest.mark.parametrize(
    ("video", "root", "expected"),
    [
        ("datasets/TimeLens-100K/videos/a.mp4", None, "videos/a.mp4"),
        ("datasets/a.mp4", "/data", "/data/a.mp4"),
        ("./video_shards//a.mp4", None, "video_shards/a.mp4"),
        ("a.mp4", "clips/", "clips/a.mp4"),
        ("clips/a.mp4", "clips", "clips/a.mp4"),
        ("clipsandmore/a.mp4", "clips", "clips/clipsandmore/a.mp4"),
        ("/abs/a.mp4", "/data", "/abs/a.mp4"),
        ("/abs/a.mp4", None, "/abs/a.mp4"),
        ("datasetsx/a.mp4", None, "datasetsx/a.mp4"),
        ("https://host/a.mp4", "/data", "https://host/a.mp4"),
        ("a.mp4", ".", "a.mp4"),
    ],
)
def test_path_is_stripped_and_rooted(video: str, root: str | None, expected: str) -> None:
    assert Rerooting(video_root=root)(video) == expected


@pytest.mark.parametrize(
    ("old", "new"), [("/old/", "/new"), ("/data/old", "/data"), ("/data", "/data/new"), ("a", "b")]
)
def test_old_root_is_exchanged_for_a_new_one(old: str, new: str) -> None:
    move = Rerooting(strip_prefixes=[old], video_root=new)
    assert move(f"{old.rstrip('/')}/x/y.mp4") == f"{new}/x/y.mp4"
    assert move(f"{new}/x/y.mp4") == f"{new}/x/y.mp4"


FOLDERS = st.lists(st.sampled_from(["a", "b", ".", "datasets"]), max_size=4).map("/".join)
PATHS = st.builds(lambda start, folders: start + folders, st.sampled_from(["", "/", "./"]), FOLDERS)


@example(video="/", prefixes=["/"], root="a")
@given(video=PATHS, prefixes=st.lists(PATHS, max_size=3), root=st.one_of(st.none(), PATHS))
def test_rerooting_twice_changes_nothing(video: str, prefixes: list[str], root: str | None) -> None:
    move = Rerooting(strip_prefixes=prefixes, video_root=root)
    once = move(f"{video}/clip.mp4")
    assert move(once) == once
    assert once.endswith("clip.mp4")


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["v_1.mkv"], "v_1.mkv"),
        (["v_1.webm", "v_10.mkv", "v_1.txt", "v_1.webm.part"], "v_1.webm"),
        (["v_1.MP4"], "v_1.MP4"),
        (["v_1.mp4", "v_1.mkv"], "v_1.mp4"),
        (["v_1.webm", "v_1.mkv"], "v_1.mp4"),
        (["v_2.mkv"], "v_1.mp4"),
        ([], "v_1.mp4"),
    ],
)
def test_a_guessed_suffix_is_that_of_the_one_video_there(
    tmp_path: Path, there: list[str], taken: str
) -> None:
    for name in there:
        (tmp_path / name).touch()
    place = OnDisk(Rerooting(video_root=str(tmp_path)))
    assert place("v_1.mp4") == str(tmp_path / taken)


def test_dots_of_an_id_are_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "x_60.0_210.0.mkv").touch()
    place = OnDisk(Rerooting(video_root=str(tmp_path)))
    assert place("x_60.0_210.0.mp4") == str(tmp_path / "x_60.0_210.0.mkv")


def test_a_folder_that_is_not_there_changes_nothing() -> None:
    assert OnDisk(Rerooting(video_root="/none"))("a/v_1.mp4") == "/none/a/v_1.mp4"
