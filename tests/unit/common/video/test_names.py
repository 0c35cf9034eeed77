"""What a video is called by different people, and what is said when nothing matches."""

import unicodedata
from pathlib import Path

import pytest

from common.errors import VideoError
from common.video.names import (
    MANY,
    as_on_disk,
    near_files,
    nearest,
    video_key,
    videos_in,
    with_nearest,
)
from common.video.roots import VideoRoots

NFC = unicodedata.normalize("NFC", "Kühlschrank")
NFD = unicodedata.normalize("NFD", "Kühlschrank")


@pytest.mark.parametrize(
    "name",
    [NFC, NFD, f"{NFC}.mp4", f"{NFD}.MKV", f"videos/{NFD}.webm", f"/data/ü/{NFC}.mpeg"],
)
def test_folder_suffix_and_composition_do_not_count(name: str) -> None:
    assert video_key(name) == NFC


def test_dots_of_an_id_are_no_suffix_and_letter_case_counts() -> None:
    assert video_key("v/NUsG9BgSes0_210.0_360.0") == video_key("NUsG9BgSes0_210.0_360.0.mp4")
    assert video_key("NUsG9BgSes0_210.0_360.0") != video_key("NUsG9BgSes0_210.0_360.5")
    assert video_key("jBLU9qd26M0.mp4") != video_key("jblu9qd26m0.mp4")


def test_the_nearest_is_what_differs_in_letter_case_else_what_looks_alike() -> None:
    known = ["3MSZA.mp4", "3MSZB.mp4", "AMT7R.mp4"]
    assert nearest("3msza", known) == ["3MSZA.mp4"]
    assert nearest("3MSZC.mkv", known, count=2) == ["3MSZB.mp4", "3MSZA.mp4"]
    assert nearest("something else", known) == []


def test_among_very_many_names_only_letter_case_is_looked_at() -> None:
    known = [f"video{number}" for number in range(MANY)] + ["AMT7R"]
    assert nearest("amt7r", known) == ["AMT7R"]
    assert nearest("AMT7Q", known) == []


def test_a_list_of_misses_is_short_and_names_the_nearest() -> None:
    said = with_nearest([f"clip{number}" for number in range(9)], ["clip3.mp4", "zebra.mp4"])
    assert said.startswith("'clip0' (nearest: 'clip3.mp4'), ")
    assert said.endswith("'clip4' (nearest: 'clip3.mp4'), …")
    assert with_nearest(["other"], ["zebra.mp4"]) == "'other'"


@pytest.mark.parametrize(("asked", "there"), [(NFC, NFD), (NFD, NFC)])
def test_a_path_is_found_whichever_way_its_parts_are_composed(
    asked: str, there: str, tmp_path: Path
) -> None:
    file = tmp_path / there / f"{there}.mp4"
    file.parent.mkdir()
    file.write_bytes(b"x")
    wanted = tmp_path / asked / f"{asked}.mp4"
    assert as_on_disk(wanted) == file
    assert as_on_disk(wanted.parent / f"{asked}2.mp4") == wanted.parent / f"{asked}2.mp4"
    roots = VideoRoots([tmp_path])
    assert roots.resolve(str(wanted)) == file
    with pytest.raises(VideoError, match="No such file"):
        roots.resolve(str(tmp_path / "gone.mp4"))


def test_a_folder_that_changes_is_read_anew_and_a_usual_suffix_wins(tmp_path: Path) -> None:
    assert videos_in(tmp_path / "none") == {}
    (tmp_path / "a.avi").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    assert videos_in(tmp_path) == {"a": tmp_path / "a.avi"}
    (tmp_path / "a.MP4").write_bytes(b"x")
    assert videos_in(tmp_path) == {"a": tmp_path / "a.MP4"}


def test_a_missing_file_is_told_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "3MSZA.mp4").write_bytes(b"x")
    assert near_files(tmp_path / "3msza.mp4") == "; nearest there: '3MSZA.mp4'"
    assert near_files(tmp_path / "other.mp4") == ""
    gone = tmp_path / "gone"
    assert near_files(gone / "a.mp4") == f"; there is no folder {gone}"
