import ast
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from common.errors import VideoError
from common.video.cache import ClipCache, SourceFile
from common.video.frames import decode, file_digest, load_frames, sample_clip
from common.video.loader import CacheMode, ClipLoader, ensure_entry
from common.video.roots import VideoRoots
from common.video.sampling import VideoSampling
from tests.fixtures.clips import make_clip

ROOT = Path(__file__).resolve().parents[4]
SAMPLING = VideoSampling(fps=4.0)
OTHER = VideoSampling(fps=2.0, min_frames=2)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", num_frames=16)


@pytest.fixture
def cache(tmp_path: Path) -> ClipCache:
    return ClipCache(tmp_path / "cache")


def loader(cache: ClipCache, mode: CacheMode, *, sampling: VideoSampling = SAMPLING) -> ClipLoader:
    roots = VideoRoots([cache.folder.parent])
    return ClipLoader(sampling=sampling, roots=roots, cache=cache, mode=mode)


def put(cache: ClipCache, video: Path, *, sampling: VideoSampling = SAMPLING) -> Path:
    """Make the entry and the pointer of a video, as preprocessing does; where the entry lies."""
    sha256 = file_digest(video)
    ensure_entry(cache, video, sha256=sha256, sampling=sampling)
    cache.remember(SourceFile.of(video), sha256=sha256)
    return cache.path(sha256, sampling=sampling.fingerprint)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def decoded(video: Path, *, sampling: VideoSampling = SAMPLING) -> npt.NDArray[np.uint8]:
    return decode(video, sampling=sampling).frames


def test_cached_mode_without_a_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="found cache mode 'strict' and no cache folder"):
        ClipLoader(sampling=SAMPLING, roots=VideoRoots([Path("/")]), mode="strict")


def test_off_decodes_and_looks_at_no_entry(cache: ClipCache, video: Path) -> None:
    flip(put(cache, video))
    off = loader(cache, "off")
    clip = off.sample(video)
    assert clip == sample_clip(video, sampling=SAMPLING)
    np.testing.assert_array_equal(off.load(clip), decoded(video))
    assert off.counts == {"hits": 0, "decoded": 1, "mismatches": 0, "corrupt": 0}


@pytest.mark.parametrize("mode", ["strict", "prefer"])
def test_cached_frames_and_clip_equal_the_decoded_ones(
    cache: ClipCache, video: Path, mode: CacheMode
) -> None:
    put(cache, video)
    cached = loader(cache, mode)
    clip = cached.sample(video)
    assert clip == sample_clip(video, sampling=SAMPLING)
    np.testing.assert_array_equal(cached.load(clip), load_frames(clip))
    assert cached.counts == {"hits": 1, "decoded": 0, "mismatches": 0, "corrupt": 0}


def test_strict_needs_no_source(cache: ClipCache, video: Path) -> None:
    put(cache, video)
    frames, clip = decoded(video), sample_clip(video, sampling=SAMPLING)
    video.unlink()
    strict = loader(cache, "strict")
    assert strict.sample(video) == clip
    np.testing.assert_array_equal(strict.load(clip), frames)


def test_missing_source_without_an_entry_is_an_error(cache: ClipCache, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"nothing\.mp4"):
        loader(cache, "prefer").sample(tmp_path / "nothing.mp4")


def test_cached_video_outside_the_roots_is_refused(cache: ClipCache, video: Path) -> None:
    put(cache, video)
    roots = VideoRoots([cache.folder])
    outside = ClipLoader(sampling=SAMPLING, roots=roots, cache=cache, mode="strict")
    with pytest.raises(VideoError, match="roots"):
        outside.sample(video)


def test_copy_of_a_cached_video_is_found_by_content(cache: ClipCache, video: Path) -> None:
    put(cache, video)
    copy = video.with_name("copy.mp4")
    shutil.copy(video, copy)
    strict = loader(cache, "strict")
    clip = strict.sample(copy)
    assert clip == sample_clip(copy, sampling=SAMPLING)
    np.testing.assert_array_equal(strict.load(clip), decoded(video))


@pytest.mark.parametrize("step", ["sample", "load"])
def test_strict_refuses_other_parameters_and_prints_both_sets(
    cache: ClipCache, video: Path, step: str
) -> None:
    put(cache, video, sampling=OTHER)
    strict = loader(cache, "strict")
    with pytest.raises(VideoError) as caught:
        strict.sample(video) if step == "sample" else strict.load(
            sample_clip(video, sampling=SAMPLING)
        )
    message = str(caught.value)
    assert "wanted: content" in message
    assert "fps=4.0 min_frames=4" in message
    assert "found:  content" in message
    assert "fps=2.0 min_frames=2" in message
    assert "tempsamp data preprocess --input ROWS.jsonl" in message
    assert "--fps 4.0 --min-frames 4" in message
    assert strict.counts["mismatches"] == 1
    assert strict.counts["decoded"] == 0


def test_prefer_decodes_other_parameters_with_one_warning(
    cache: ClipCache, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(cache, video, sampling=OTHER)
    prefer = loader(cache, "prefer")
    clip = sample_clip(video, sampling=SAMPLING)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            np.testing.assert_array_equal(prefer.load(clip), decoded(video))
    assert prefer.counts == {"hits": 0, "decoded": 3, "mismatches": 3, "corrupt": 0}
    (record,) = caplog.records
    assert "other sampling parameters" in record.getMessage()
    assert "fps=2.0" in record.error  # type: ignore[attr-defined]


def test_prefer_decodes_what_is_not_cached(cache: ClipCache, video: Path) -> None:
    prefer = loader(cache, "prefer")
    np.testing.assert_array_equal(prefer.load(prefer.sample(video)), decoded(video))
    assert prefer.counts == {"hits": 0, "decoded": 1, "mismatches": 0, "corrupt": 0}


def test_strict_refuses_what_is_not_cached(cache: ClipCache, video: Path) -> None:
    with pytest.raises(VideoError, match="no cache entry of this source"):
        loader(cache, "strict").sample(video)


def test_entry_renamed_to_other_parameters_is_never_used(cache: ClipCache, video: Path) -> None:
    entry = put(cache, video, sampling=OTHER)
    entry.rename(entry.with_name(f"{SAMPLING.fingerprint}.safetensors"))
    clip = sample_clip(video, sampling=SAMPLING)
    np.testing.assert_array_equal(loader(cache, "prefer").load(clip), decoded(video))
    strict = loader(cache, "strict")
    with pytest.raises(VideoError, match=r"(?s)of another clip.*fps=4\.0.*fps=2\.0.*differs in"):
        strict.load(clip)
    with pytest.raises(VideoError, match="of another clip"):
        strict.sample(video)


def test_entry_of_another_video_is_never_used(cache: ClipCache, video: Path) -> None:
    other = make_clip(video.with_name("other.mp4"), num_frames=16, fps=7.0)
    entry = put(cache, video)
    shutil.copy(put(cache, other), entry)
    clip = sample_clip(video, sampling=SAMPLING)
    np.testing.assert_array_equal(loader(cache, "prefer").load(clip), decoded(video))
    with pytest.raises(VideoError, match="differs in sha256, source_fps"):
        loader(cache, "strict").load(clip)


def test_clip_with_other_indices_is_not_served_from_the_entry(
    cache: ClipCache, video: Path
) -> None:
    put(cache, video)
    clip = sample_clip(video, sampling=SAMPLING)
    two = clip.model_copy(
        update={"frame_indices": (1, 2), "frame_times_s": clip.frame_times_s[1:3]}
    )
    np.testing.assert_array_equal(loader(cache, "prefer").load(two), load_frames(two))
    with pytest.raises(VideoError, match="differs in frame_indices, frame_times_s"):
        loader(cache, "strict").load(two)


def test_changed_source_is_recognised(cache: ClipCache, video: Path) -> None:
    put(cache, video)
    before, old = decoded(video), sample_clip(video, sampling=SAMPLING)
    make_clip(video, num_frames=16, height_px=64)
    now = sample_clip(video, sampling=SAMPLING)
    with pytest.raises(
        VideoError,
        match=rf"cached from content {old.sha256[:12]} of \d{{4}}-\d\d-\d\d, "
        rf"the file is now {now.sha256[:12]}",
    ):
        loader(cache, "strict").sample(video)
    prefer = loader(cache, "prefer")
    assert prefer.sample(video) == now
    np.testing.assert_array_equal(prefer.load(now), decoded(video))
    np.testing.assert_array_equal(prefer.load(old), before)


@pytest.mark.parametrize("mode", ["strict", "prefer"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_damaged_entry_is_counted_decoded_and_mended(
    cache: ClipCache, video: Path, mode: CacheMode, damage: str
) -> None:
    entry = put(cache, video)
    if damage == "flipped":
        flip(entry)
    else:
        os.truncate(entry, 0 if damage == "empty" else entry.stat().st_size // 2)
    clip = sample_clip(video, sampling=SAMPLING)
    first = loader(cache, mode)
    np.testing.assert_array_equal(first.load(clip), decoded(video))
    assert first.counts == {"hits": 0, "decoded": 1, "mismatches": 0, "corrupt": 1}
    second = loader(cache, mode)
    np.testing.assert_array_equal(second.load(clip), decoded(video))
    assert second.counts == {"hits": 1, "decoded": 0, "mismatches": 0, "corrupt": 0}


def test_damaged_header_is_mended_by_sampling(cache: ClipCache, video: Path) -> None:
    os.truncate(put(cache, video), 1000)
    strict = loader(cache, "strict")
    clip = strict.sample(video)
    np.testing.assert_array_equal(strict.load(clip), decoded(video))
    assert strict.counts == {"hits": 1, "decoded": 0, "mismatches": 0, "corrupt": 1}


def test_damaged_entry_without_its_source_is_an_error(cache: ClipCache, video: Path) -> None:
    flip(put(cache, video))
    clip = sample_clip(video, sampling=SAMPLING)
    video.unlink()
    for mode in ("strict", "prefer"):
        with pytest.raises(VideoError, match=r"entry is damaged.*cannot be decoded again: .*clip"):
            loader(cache, mode).load(clip)


def test_damaged_entry_that_cannot_be_mended_is_still_decoded(
    cache: ClipCache, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = put(cache, video)
    flip(entry)
    entry.with_suffix(".lock").mkdir()  # as on a read-only disk, locking fails
    strict = loader(cache, "strict")
    clip = sample_clip(video, sampling=SAMPLING)
    np.testing.assert_array_equal(strict.load(clip), decoded(video))
    assert any("cannot be mended" in record.getMessage() for record in caplog.records)


def test_threads_share_a_loader(cache: ClipCache, tmp_path: Path) -> None:
    videos = [make_clip(tmp_path / f"{i}.mp4", num_frames=16, fps=4.0 + i) for i in range(4)]
    entries = [put(cache, video) for video in videos]
    wanted = [decoded(video) for video in videos]
    flip(entries[0])
    shared = loader(cache, "strict")

    def ask(number: int) -> bool:
        video = videos[number % 4]
        return bool((shared.load(shared.sample(video)) == wanted[number % 4]).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(80)))
    assert shared.counts["hits"] + shared.counts["decoded"] == 80
    assert shared.counts["corrupt"] == shared.counts["decoded"] > 0
    assert loader(cache, "strict").load(shared.sample(videos[0])).shape == wanted[0].shape


def test_no_pickle_is_loaded_anywhere() -> None:
    """pickle runs what it reads; one file names it, for the error that torch refuses one with."""
    sources = [
        p for folder in ("common", "services", "jobs") for p in (ROOT / folder).rglob("*.py")
    ]
    users, unsafe = {}, []
    for path in sources:
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and "pickle" in {alias.name for alias in node.names}:
                users[name] = ["*"]
            elif isinstance(node, ast.ImportFrom) and node.module == "pickle":
                users[name] = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                unsafe += [name] if "weights_only=True" not in ast.unparse(node) else []
    assert users == {"jobs/data/import_pt.py": ["UnpicklingError"]}
    assert unsafe == []
