import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors import safe_open

from common.video import direct_write
from common.video.cache import ClipCache, CorruptEntryError, EntryHeader, SourceFile
from common.video.frames import decode, file_digest
from common.video.loader import ensure_entry
from common.video.sampling import VideoSampling
from tests.fixtures.clips import make_clip

ROOT = Path(__file__).resolve().parents[4]
SAMPLING = VideoSampling(fps=4.0)
DEADLINE_S = 60.0


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", num_frames=16)


@pytest.fixture
def cache(tmp_path: Path) -> ClipCache:
    return ClipCache(tmp_path / "cache")


def put(cache: ClipCache, video: Path, *, sampling: VideoSampling = SAMPLING) -> Path:
    """Make an entry; where it lies."""
    sha256 = file_digest(video)
    ensure_entry(cache, video, sha256=sha256, sampling=sampling)
    return cache.path(sha256, sampling=sampling.fingerprint)


def header_of(cache: ClipCache, video: Path) -> EntryHeader:
    header = cache.header(file_digest(video), sampling=SAMPLING.fingerprint)
    assert header is not None
    return header


def flip(path: Path, *, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_entry_holds_the_decoded_frames_and_says_how_they_were_made(
    cache: ClipCache, video: Path
) -> None:
    put(cache, video)
    entry = cache.read(file_digest(video), sampling=SAMPLING.fingerprint)
    assert entry is not None
    decoded = decode(video, sampling=SAMPLING)
    np.testing.assert_array_equal(entry.frames, decoded.frames)
    header = entry.header
    assert (header.clip, header.sampling) == (decoded.clip, SAMPLING)
    assert header.source == SourceFile.of(video)
    assert header.decoder_version
    assert header == header_of(cache, video)


def test_entry_is_a_plain_safetensors_file(cache: ClipCache, video: Path) -> None:
    path = put(cache, video)
    with safe_open(path, framework="np") as file:
        frames, metadata = file.get_tensor("frames"), file.metadata()
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, decode(video, sampling=SAMPLING).frames)
    assert json.loads(metadata["header"])["clip"]["sha256"] == file_digest(video)


def test_frames_are_the_callers_own(cache: ClipCache, video: Path) -> None:
    path = put(cache, video)
    entry = cache.read(file_digest(video), sampling=SAMPLING.fingerprint)
    assert entry is not None
    before = entry.frames.copy()
    flip(path, at=-1)
    path.unlink()
    np.testing.assert_array_equal(entry.frames, before)
    entry.frames[0] = 0


def test_missing_entry_is_none(cache: ClipCache, video: Path) -> None:
    assert cache.header(file_digest(video), sampling="0" * 16) is None
    assert cache.read(file_digest(video), sampling="0" * 16) is None
    assert cache.headers(file_digest(video)) == []


@pytest.mark.parametrize("at", [-1, -5000])
def test_flipped_bit_of_a_frame_is_found(cache: ClipCache, video: Path, at: int) -> None:
    path = put(cache, video)
    flip(path, at=at)
    with pytest.raises(CorruptEntryError, match="found frames with blake3"):
        cache.read(file_digest(video), sampling=SAMPLING.fingerprint)


def test_changed_frame_time_in_the_header_is_found(cache: ClipCache, video: Path) -> None:
    path = put(cache, video)
    content = path.read_bytes()
    time_s = str(header_of(cache, video).clip.frame_times_s[-1]).encode()
    wrong = time_s[:-1] + (b"1" if time_s[-1:] != b"1" else b"2")
    assert time_s in content
    path.write_bytes(content.replace(time_s, wrong))
    with pytest.raises(CorruptEntryError, match="digest"):
        cache.header(file_digest(video), sampling=SAMPLING.fingerprint)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated_entry_is_found_without_reading_its_frames(
    cache: ClipCache, video: Path, keep: int
) -> None:
    path = put(cache, video)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptEntryError, match="not an entry of format 1"):
        cache.header(file_digest(video), sampling=SAMPLING.fingerprint)


@pytest.mark.parametrize("junk", [b"\xff" * 64, b"not an entry", b"\x02\0\0\0\0\0\0\0{}"])
def test_other_files_are_no_entries(cache: ClipCache, video: Path, junk: bytes) -> None:
    path = put(cache, video)
    path.write_bytes(junk)
    with pytest.raises(CorruptEntryError, match="not an entry"):
        cache.read(file_digest(video), sampling=SAMPLING.fingerprint)


def test_entry_is_not_made_twice(cache: ClipCache, video: Path) -> None:
    path = put(cache, video)
    made = path.stat()
    assert not ensure_entry(cache, video, sha256=file_digest(video), sampling=SAMPLING)
    assert path.stat().st_mtime_ns == made.st_mtime_ns


def test_unchanged_file_is_known_without_reading_it(cache: ClipCache, video: Path) -> None:
    assert cache.known_digest(video) is None
    cache.remember(SourceFile.of(video), sha256="5" * 64)
    assert cache.known_digest(video) == "5" * 64
    stat = video.stat()
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert cache.known_digest(video) is None


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that knows `cache`, `video` and `sampling`."""
    known = (
        "import sys\n"
        "from common.video.cache import ClipCache, SourceFile\n"
        "from common.video.loader import decode, ensure_entry, file_digest\n"
        "from common.video.sampling import VideoSampling\n"
        "cache, video, sampling = ClipCache(sys.argv[1]), sys.argv[2], VideoSampling(fps=4.0)\n"
    )
    command = [sys.executable, "-c", known + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_full_disk_is_said_and_leaves_no_litter(cache: ClipCache, video: Path) -> None:
    """A limit of the child alone: our own standard output may be a file, too."""
    code = (
        "import resource\n"
        "source = SourceFile.of(video)\n"
        "decoded = decode(video, sampling=sampling)\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))\n"
        "try:\n"
        "    cache.write(decoded.frames, clip=decoded.clip, sampling=sampling, source=source)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    said, _ = start(code, cache.folder, video).communicate(timeout=DEADLINE_S)
    assert re.search(r"cannot write 0\.\d MB: .*free the disk", said)
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []
    assert list(cache.folder.rglob("*.tmp")) == []


def until(condition: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    """Wait for a condition as long as the processes live."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.002)


def has_open(process: subprocess.Popen[str], path: Path) -> bool:
    return str(path) in {file.path for file in psutil.Process(process.pid).open_files()}


def test_two_processes_make_one_entry_once(cache: ClipCache, video: Path) -> None:
    sha256, fingerprint = file_digest(video), SAMPLING.fingerprint
    race = "print(ensure_entry(cache, video, sha256=file_digest(video), sampling=sampling))"
    lock = cache.path(sha256, sampling=fingerprint).with_suffix(".lock")
    with cache.locked(sha256, sampling=fingerprint):
        racers = [start(race, cache.folder, video) for _ in range(2)]
        for racer in racers:
            until(lambda racer=racer: has_open(racer, lock), *racers)  # it has seen: no entry
    answers = sorted(racer.communicate(timeout=DEADLINE_S)[0].strip() for racer in racers)
    assert answers == ["False", "True"]
    assert [path.suffix for path in cache.folder.rglob("*") if path.is_file()] == [".safetensors"]


def test_killed_writer_leaves_no_torn_entry(cache: ClipCache, tmp_path: Path) -> None:
    video = make_clip(tmp_path / "large.mp4", num_frames=16, height_px=320, width_px=480)
    frames = decode(video, sampling=SAMPLING).frames
    write_for_ever = (
        "decoded = decode(video, sampling=sampling)\n"
        "clip, source = decoded.clip, SourceFile.of(video)\n"
        "with cache.locked(clip.sha256, sampling=clip.sampling):\n"
        "    while True:\n"
        "        cache.write(decoded.frames, clip=clip, sampling=sampling, source=source)"
    )
    entry = cache.path(file_digest(video), sampling=SAMPLING.fingerprint)
    writer = start(write_for_ever, cache.folder, video)
    until(lambda: entry.exists() and any(entry.with_suffix(".tmp").glob("*")), writer)
    writer.kill()
    writer.communicate()
    whole = cache.read(file_digest(video), sampling=SAMPLING.fingerprint)
    assert whole is not None
    np.testing.assert_array_equal(whole.frames, frames)
    assert cache.remove_leftovers() == 1
    assert list(entry.parent.iterdir()) == [entry]


def test_sweep_leaves_a_living_writer_alone(cache: ClipCache, video: Path) -> None:
    with cache.locked(file_digest(video), sampling=SAMPLING.fingerprint):
        assert cache.remove_leftovers() == 0


def test_a_file_system_without_direct_writes_is_written_as_any_other(
    cache: ClipCache, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tmpfs of older kernels refuses to open, some network disks refuse to write."""
    opened: list[int] = []

    def refusing(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append(flags)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, mode, dir_fd=dir_fd)

    real_open = os.open
    with monkeypatch.context() as patched:
        patched.setattr(direct_write.os, "open", refusing)
        put(cache, video)
    assert any(flags & os.O_DIRECT for flags in opened)
    entry = cache.read(file_digest(video), sampling=SAMPLING.fingerprint)
    assert entry is not None
    np.testing.assert_array_equal(entry.frames, decode(video, sampling=SAMPLING).frames)
