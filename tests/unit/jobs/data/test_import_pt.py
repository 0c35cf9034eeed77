import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from common.rows import TrainerRow, UnusableRowError
from common.video.cache import ClipCache, EntryHeader
from common.video.frames import decode, file_digest
from common.video.sampling import VideoSampling
from jobs.data.cache_filling import Done, Fault
from jobs.data.import_pt import OldEntry, command, find_pt, import_entry, old_entry_of
from jobs.data.preprocess import Plan
from tests.fixtures.clips import make_clip
from tests.fixtures.pages.documents import example, run_script

SAMPLING = VideoSampling(fps=4.0)
OLD = OldEntry(video="a.mp4", pt="a.pt")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    make_clip(tmp_path / "videos/a.mp4", num_frames=16)
    (tmp_path / "pt").mkdir()
    return Plan(cache=tmp_path / "cache", roots=(tmp_path / "videos",), sampling=SAMPLING)


@pytest.fixture
def pt_dir(tmp_path: Path) -> Path:
    return tmp_path / "pt"


def old_content(plan: Plan) -> dict[str, Any]:
    """What the public code would have written for a.mp4; +0.3: a resize in float32."""
    decoded = decode(plan.roots[0] / "a.mp4", sampling=plan.sampling)
    frames = torch.from_numpy(decoded.frames).permute(0, 3, 1, 2).float()
    return {
        "frames": (frames + 0.3).clamp(0, 255),
        "metadata": {
            "fps": decoded.clip.source_fps,
            "frames_indices": list(decoded.clip.frame_indices),
            "total_num_frames": decoded.clip.total_frames,
            "video_backend": "torchvision",
        },
        "sample_fps": 4.0,
        "preprocess_version": "qwen3vl_patch16_v1",
    }


def header_of(plan: Plan) -> EntryHeader | None:
    sha256 = file_digest(plan.roots[0] / "a.mp4")
    return ClipCache(plan.cache).header(sha256, sampling=plan.sampling.fingerprint)


@pytest.mark.parametrize("zipped", [True, False])
def test_old_file_becomes_an_entry_with_rounded_frames(
    plan: Plan, pt_dir: Path, zipped: bool
) -> None:
    torch.save(old_content(plan), pt_dir / "a.pt", _use_new_zipfile_serialization=zipped)
    first, second = import_entry(OLD, plan, pt_dir), import_entry(OLD, plan, pt_dir)
    assert isinstance(first, Done)
    assert first.written
    assert isinstance(second, Done)
    assert not second.written
    decoded = decode(plan.roots[0] / "a.mp4", sampling=SAMPLING)
    entry = ClipCache(plan.cache).read(decoded.clip.sha256, sampling=SAMPLING.fingerprint)
    assert entry is not None
    np.testing.assert_array_equal(entry.frames, decoded.frames)
    assert entry.header.clip == decoded.clip
    assert entry.header.imported_from == "a.pt"


def cut(content: dict[str, Any]) -> None:
    content["frames"] = content["frames"][:-2]


def shift(content: dict[str, Any]) -> None:
    content["metadata"]["frames_indices"][1] += 1


def shrink(content: dict[str, Any]) -> None:
    content["frames"] = content["frames"][..., :32]


def forget(content: dict[str, Any]) -> None:
    content["metadata"] = {"fps": 4.0, "frames_indices": list(range(len(content["frames"])))}


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (cut, "num_frames"),
        (shift, "frame_indices"),
        (shrink, "frame_hw"),
        (forget, "frame_indices, total_frames, source_fps"),
    ],
)
def test_other_parameters_are_refused_with_both_sets(
    plan: Plan, pt_dir: Path, change: Callable[[dict[str, Any]], None], differing: str
) -> None:
    content = old_content(plan)
    change(content)
    torch.save(content, pt_dir / "a.pt")
    fault = import_entry(OLD, plan, pt_dir)
    assert isinstance(fault, Fault)
    assert fault.reason == "refused"
    assert f"differs in {differing}\n" in fault.detail
    assert "found:  num_frames=" in fault.detail
    assert "wanted: num_frames=8" in fault.detail
    assert "fps=4.0 min_frames=4" in fault.detail
    assert header_of(plan) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda frames: frames * 2, "wanted 0 to 255"),
        (lambda frames: frames * float("nan"), "wanted 0 to 255"),
        (lambda frames: frames.flip(0), "made from another file"),
        (lambda frames: frames / 255, "made from another file"),
        (lambda frames: frames[0], "wanted [F, 3, H, W]"),
        (lambda frames: None, "wanted [F, 3, H, W]"),
    ],
)
def test_other_pixels_are_refused(
    plan: Plan, pt_dir: Path, values: Callable[[torch.Tensor], torch.Tensor | None], said: str
) -> None:
    content = old_content(plan)
    content["frames"] = values(content["frames"])
    torch.save(content, pt_dir / "a.pt")
    fault = import_entry(OLD, plan, pt_dir)
    assert isinstance(fault, Fault)
    assert fault.reason == "refused"
    assert said in fault.detail
    assert header_of(plan) is None


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ("zip", "could run code; it was not loaded"),
        ("legacy", "could run code; it was not loaded"),
        ("bare", "not a readable .pt file"),
    ],
)
def test_pickle_with_code_is_refused_and_does_not_run(
    plan: Plan, pt_dir: Path, tmp_path: Path, container: str, said: str
) -> None:
    victim = tmp_path / "victim"
    content = {**old_content(plan), "extra": Malicious(victim)}
    if container == "bare":
        (pt_dir / "a.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, pt_dir / "a.pt", _use_new_zipfile_serialization=container == "zip")
    fault = import_entry(OLD, plan, pt_dir)
    assert isinstance(fault, Fault)
    assert fault.reason == "refused"
    assert said in fault.detail
    assert not victim.exists()
    assert header_of(plan) is None
    if container == "bare":
        pickle.loads((pt_dir / "a.pt").read_bytes())
    else:
        torch.load(pt_dir / "a.pt", weights_only=False)
    assert victim.exists(), "the file would have done nothing: the test proves nothing"


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4 broken zip"])
def test_unreadable_file_is_refused(plan: Plan, pt_dir: Path, content: bytes) -> None:
    (pt_dir / "a.pt").write_bytes(content)
    fault = import_entry(OLD, plan, pt_dir)
    assert isinstance(fault, Fault)
    assert fault.reason == "refused"
    assert "a.pt" in fault.detail


def test_old_file_is_found_below_its_folder_only(plan: Plan, pt_dir: Path) -> None:
    torch.save(old_content(plan), pt_dir / "a.pt")
    assert find_pt("/elsewhere/cache/a.pt", pt_dir) == pt_dir / "a.pt"
    (pt_dir / "link.pt").symlink_to(plan.roots[0] / "a.mp4")
    for name in ("../videos/a.mp4", "link.pt", "no.pt"):
        with pytest.raises(FileNotFoundError, match="--pt-dir"):
            find_pt(name, pt_dir)


def test_row_without_an_old_file_is_refused() -> None:
    row = TrainerRow(videos=["a.mp4"], query="it")
    with pytest.raises(UnusableRowError, match="no preprocessed_video"):
        old_entry_of(row)


def test_command_imports_and_lists_failures(plan: Plan, pt_dir: Path, tmp_path: Path) -> None:
    torch.save(old_content(plan), pt_dir / "a.pt")
    rows = tmp_path / "rows.jsonl"
    lines = [
        {"query": "it", "videos": [f"{name}.mp4"], "preprocessed_video": f"old/{name}.pt"}
        for name in "ab"
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    app = typer.Typer()
    app.command()(command)
    options = ["--cache", plan.cache, "--video-root", plan.roots[0], "--fps", 4, "--workers", 1]
    arguments = ["--input", rows, "--pt-dir", pt_dir, *options]
    ended = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ended.exit_code == 1
    assert header_of(plan) is not None
    (failure,) = (tmp_path / "rows.jsonl.failed.jsonl").read_text().splitlines()
    assert json.loads(failure)["reason"] == "missing file"
    assert json.loads(failure)["video"] == "b.mp4 (old/b.pt)"


def test_command_of_the_manual_imports(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    plan = Plan(
        cache=tmp_path / "clips", roots=(tmp_path / "videos",), sampling=VideoSampling(fps=2.0)
    )
    make_clip(tmp_path / "videos/a.mp4", num_frames=16)
    torch.save(old_content(plan) | {"sample_fps": 2.0}, tmp_path / "old/a.pt")
    row = {"query": "it", "videos": ["a.mp4"], "preprocessed_video": "old/a.pt"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    run_script(example("import-pt").script, cwd=tmp_path, timeout_s=120)
    assert header_of(plan) is not None


def test_row_about_a_window_is_refused_because_old_caches_hold_none() -> None:
    row = TrainerRow(videos=["a.mp4"], query="it", start_s=1, preprocessed_video="a.pt")
    with pytest.raises(UnusableRowError, match=r"part of a longer file: found start_s 1\.0"):
        old_entry_of(row)
