"""Benchmark names, annotation files and videos in the layouts people have."""

import unicodedata
from pathlib import Path

import pytest

from common.errors import ConfigError
from jobs.evaluation.benchmarks import (
    BENCHMARKS,
    annotation_file,
    benchmarks_named,
    find_video,
    names_there,
)
from jobs.evaluation.scoring.score import BENCHES


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_every_benchmark_can_be_scored() -> None:
    assert {benchmark.scored_as for benchmark in BENCHMARKS.values()} <= set(BENCHES)


def test_names_are_a_list_and_a_path_is_trainer_rows(tmp_path: Path) -> None:
    rows = touch(tmp_path / "held_out.jsonl")
    found = benchmarks_named(f"charades-timelens, qvhighlights,{rows}")
    assert [one.name for one in found] == ["charades-timelens", "qvhighlights", "held_out"]
    assert found[-1].scored_as == "rows"
    assert annotation_file(found[-1], folder=None) == rows


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'charades-timelense'.*nearest: charades-timelens"):
        benchmarks_named("charades-timelense")
    with pytest.raises(ConfigError, match="wanted every name once"):
        benchmarks_named("tvgbench,tvgbench")
    with pytest.raises(ConfigError, match="wanted one of"):
        benchmarks_named(" , ")


@pytest.mark.parametrize(
    ("bench", "file"),
    [
        ("charades-timelens", "charades-timelens.json"),
        ("charades-timelens", "annotations/charades-timelens.json"),
        ("charades-sta", "charades_sta/charades_sta_test.txt"),
        ("activitynet-captions", "val_2.json"),
        ("activitynet-captions-val_1", "activitynet/val_1.2dtan.json.gz"),
        ("qvhighlights", "highlight_val_release.jsonl"),
    ],
)
def test_annotation_files_are_found_by_their_published_names(
    bench: str, file: str, tmp_path: Path
) -> None:
    path = touch(tmp_path / file)
    assert annotation_file(BENCHMARKS[bench], folder=tmp_path) == path


def test_no_annotation_file_and_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--bench-dir: found none of tvgbench\.json"):
        annotation_file(BENCHMARKS["tvgbench"], folder=tmp_path)
    with pytest.raises(ConfigError, match=r"--bench-dir: found none, wanted"):
        annotation_file(BENCHMARKS["tvgbench"], folder=None)
    for folder in ("a", "b"):
        touch(tmp_path / folder / "tvgbench.json")
    with pytest.raises(ConfigError, match=r"a/tvgbench\.json.*b/tvgbench\.json"):
        annotation_file(BENCHMARKS["tvgbench"], folder=tmp_path)
    with pytest.raises(ConfigError, match="found no file"):
        annotation_file(benchmarks_named("gone.jsonl")[0], folder=None)


@pytest.mark.parametrize(
    "place",
    [
        "videos/charades/3MSZA.mp4",
        "video_shards/charades/3MSZA.mp4",
        "charades/3MSZA.mp4",
        "videos/3MSZA.mp4",
        "3MSZA.mp4",
        "videos/charades/3MSZA.mkv",
        "3MSZA.webm",
    ],
)
def test_videos_are_found_in_every_layout(place: str, tmp_path: Path) -> None:
    path = touch(tmp_path / place)
    found = find_video("videos/charades/3MSZA.mp4", root=tmp_path, subset="charades")
    assert found == path.resolve()


def test_a_name_with_dots_keeps_them(tmp_path: Path) -> None:
    path = touch(tmp_path / "videos" / "NUsG9BgSes0_210.0_360.0.mp4")
    assert find_video("NUsG9BgSes0_210.0_360.0.mp4", root=tmp_path) == path.resolve()
    assert find_video("NUsG9BgSes0_210.0_361.0.mp4", root=tmp_path) is None


@pytest.mark.parametrize("asked", ["NUsG9BgSes0_210.0_360.0", "v/NUsG9BgSes0_210.0_360.0.webm"])
def test_a_suffix_may_be_left_out_or_be_another(asked: str, tmp_path: Path) -> None:
    path = touch(tmp_path / "videos" / "NUsG9BgSes0_210.0_360.0.MP4")
    assert find_video(asked, root=tmp_path) == path.resolve()


def test_letters_of_videos_match_however_they_are_composed(tmp_path: Path) -> None:
    path = touch(tmp_path / "videos" / unicodedata.normalize("NFD", "Kühlschrank.mkv"))
    assert find_video("Kühlschrank.mp4", root=tmp_path) == path.resolve()
    assert names_there(tmp_path) == {path.name}
