"""Frames for both sides of the ring: `ClipLoader.sample(path)` and `.load(ClipRef) -> frames`.

The learner's feed samples; rollout and learner load. A cached frame is used only if it is exactly
the wanted one, and whatever is not used is counted and said:

    off      decode; no cache is looked at
    prefer   the entry if it is the wanted clip, else decode: one warning per reason, all counted
    strict   the entry or `VideoError`; the source files need not be there at all

Damage is not a difference: an entry with a wrong digest is decoded again and mended on disk in both
cached modes, and is a `VideoError` when its source is gone. Neighbours: `common.video.cache` (the
store), `common.video.frames` (the decoders), `common.video.roots` (which files may be opened);
`jobs.data.preprocess` fills the store through `ensure_entry`.
"""

import contextlib
import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.config import Video
from common.errors import VideoError
from common.messages import ClipRef, Window
from common.video.cache import (
    ClipCache,
    CorruptEntryError,
    EntryHeader,
    PathPointer,
    SourceFile,
    describe,
)
from common.video.frames import decode, file_digest, load_frames, sample_clip
from common.video.limits import ClipLimits
from common.video.roots import VideoRoots
from common.video.sampling import VideoSampling
from common.video.windows import entry_key, window_in_words

logger = logging.getLogger(__name__)

CacheMode = Literal["strict", "prefer", "off"]
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Wanted:
    """What was looked up, for the message that says why it was not found."""

    uri: str
    sha256: str
    fingerprint: str
    window: Window | None = None
    clip: ClipRef | None = None
    """Known when frames are loaded, not yet when a clip is sampled."""
    cached: PathPointer | None = None
    """What the path was when it was cached, if it has other content now."""


class ClipLoader:
    """Where a process gets its frames; every method may be called from several threads."""

    def __init__(
        self,
        *,
        sampling: VideoSampling,
        roots: VideoRoots,
        cache: ClipCache | None = None,
        mode: CacheMode = "off",
        limits: ClipLimits | None = None,
    ) -> None:
        """With `mode` off, `cache` is not looked at. `limits`: on what `load` is asked for.

        Raises:
            ValueError: a cached mode without a cache.
        """
        if mode != "off" and cache is None:
            raise ValueError(f"found cache mode {mode!r} and no cache folder, wanted a folder")
        self._sampling = sampling
        self._roots = roots
        self._cache = None if mode == "off" else cache
        self._strict = mode == "strict"
        self._limits = limits
        self._mutex = threading.Lock()
        self._warned: set[str] = set()
        self.counts = Counter(hits=0, decoded=0, mismatches=0, corrupt=0)
        """Loads by source (hits, decoded); entries refused (mismatches) or damaged (corrupt)."""

    @classmethod
    def of(cls, video: Video, *, limits: ClipLimits | None = None) -> "ClipLoader":
        """The loader of the run that `[shared.video]` describes."""
        return cls(
            sampling=video.sampling,
            roots=VideoRoots(video.roots, allow_urls=video.allow_urls, downloads=video.downloads),
            cache=ClipCache(video.cache) if video.cache else None,
            mode=video.cache_mode if video.cache else "off",
            limits=limits,
        )

    def sample(self, path: str | os.PathLike[str], window: Window | None = None) -> ClipRef:
        """The clip that stands for a video or a window of it; from a cached header if there is one.

        Raises:
            VideoError: the file cannot be used, or strict mode and no entry fits.
        """
        if self._cache is None:
            file = self._roots.resolve(os.fspath(path))
            return sample_clip(file, sampling=self._sampling, window=window)
        file = self._file(path)
        pointer = self._cache.pointer(file)
        sha256 = _content(file, pointer)
        try:
            key = entry_key(self._sampling.fingerprint, window=window)
            header = self._cache.header(sha256, sampling=key)
        except CorruptEntryError as error:
            with _blamed_on(error):
                self._mend(file, sha256, error, window=window)
                return sample_clip(file, sampling=self._sampling, window=window)
        if header is not None and is_entry_of(
            header, sha256=sha256, sampling=self._sampling, window=window
        ):
            return header.clip.model_copy(update={"uri": str(file)})
        wanted = _Wanted(
            uri=str(file),
            sha256=sha256,
            fingerprint=self._sampling.fingerprint,
            window=window,
            cached=pointer if pointer is not None and pointer.sha256 != sha256 else None,
        )
        self._refuse(wanted, header)
        return sample_clip(file, sampling=self._sampling, window=window)

    def cached(self, path: str | os.PathLike[str]) -> Path | None:
        """The path of a file that is gone, if it was cached; None for any other."""
        gone = Path(os.path.realpath(path))
        known = self._cache is not None and self._cache.pointer(gone) is not None
        return gone if known and not gone.exists() else None

    def load(self, clip: ClipRef) -> Frames:
        """The frames of a clip.

        Returns:
            [F, H, W, 3] uint8 RGB, F = len(clip.frame_indices), (H, W) = clip.frame_hw; the
            caller's own.

        Raises:
            VideoError: the file is broken or not the one that was sampled, or strict mode and no
                entry fits, or it is over the limits.
        """
        self.refuse(clip)
        if self._cache is None:
            return self._decode(clip)
        try:
            key = entry_key(clip.sampling, window=clip.window_s)
            entry = self._cache.read(clip.sha256, sampling=key)
        except CorruptEntryError as error:
            with _blamed_on(error):
                if clip.sampling == self._sampling.fingerprint:
                    file = self._roots.resolve(clip.uri)
                    self._mend(file, clip.sha256, error, window=clip.window_s)
                return self._decode(clip)
        if entry is not None and not entry.header.differences(clip):
            self._count("hits")
            return entry.frames
        wanted = _Wanted(clip.uri, clip.sha256, clip.sampling, clip.window_s, clip)
        self._refuse(wanted, entry.header if entry is not None else None)
        return self._decode(clip)

    def refuse(self, clip: ClipRef) -> None:
        """Raises when a clip is over the limits; `load` asks this first.

        Raises:
            VideoError: names what was found, the limit and its knob.
        """
        if self._limits is not None:
            self._limits.refuse(clip)

    def _file(self, path: str | os.PathLike[str]) -> Path:
        """A file that may be opened, or one that is gone but was cached."""
        try:
            return self._roots.resolve(os.fspath(path))
        except VideoError:
            if (gone := self.cached(path)) is None:
                raise
            return gone

    def _decode(self, clip: ClipRef) -> Frames:
        file = self._roots.resolve(clip.uri)
        frames = load_frames(clip.model_copy(update={"uri": str(file)}))
        self._count("decoded")
        return frames

    def _mend(
        self, file: Path, sha256: str, error: CorruptEntryError, *, window: Window | None
    ) -> None:
        """Replace a damaged entry on disk; if that is impossible, decoding still works."""
        assert self._cache is not None
        self._count("corrupt")
        logger.warning("a damaged cache entry is decoded again", extra={"error": str(error)})
        try:
            ensure_entry(
                self._cache,
                file,
                sha256=sha256,
                sampling=self._sampling,
                window=window,
                verify=True,
            )
        except OSError as problem:
            self._warn_once("damaged cache entries cannot be mended", str(problem))

    def _refuse(self, wanted: _Wanted, header: EntryHeader | None) -> None:
        """Strict: the error with both parameter sets. Prefer: count, and warn once per reason."""
        assert self._cache is not None
        found = [header] if header is not None else self._cache.headers(wanted.sha256)
        if found:
            self._count("mismatches")
        reason = _reason(wanted, header=header, found=found)
        message = _explanation(
            wanted, reason, found=found, sampling=self._sampling, folder=self._cache.folder
        )
        if self._strict:
            raise VideoError(f"{message}\nor set the cache mode to prefer, which decodes")
        self._warn_once(reason, message)

    def _count(self, name: str) -> None:
        with self._mutex:
            self.counts[name] += 1

    def _warn_once(self, reason: str, detail: str) -> None:
        with self._mutex:
            if reason in self._warned:
                return
            self._warned.add(reason)
        logger.warning("%s; counted from here on", reason, extra={"error": detail})


def is_entry_of(
    header: EntryHeader, *, sha256: str, sampling: VideoSampling, window: Window | None = None
) -> bool:
    """Whether an entry was made from this content, or part of it, with exactly these parameters."""
    found = (header.clip.sha256, header.clip.sampling, header.sampling, header.clip.window_s)
    return found == (sha256, sampling.fingerprint, sampling, window)


def ensure_entry(
    cache: ClipCache,
    file: str | os.PathLike[str],
    *,
    sha256: str,
    sampling: VideoSampling,
    window: Window | None = None,
    verify: bool = False,
    sync: bool = True,
) -> bool:
    """Decode a video into the cache unless its entry is there; processes do not do it twice.

    Args:
        cache: where the entry goes.
        file: a video that may be opened.
        sha256: its content.
        sampling: which frames, at which size.
        window: of which part of it; None is all.
        verify: check the digest of the frames that are there, not only their header.
        sync: as in `ClipCache.write`.

    Returns:
        Whether it was written.

    Raises:
        VideoError: the file cannot be decoded, or changes meanwhile.
        OSError: the cache cannot be written.
    """
    there = functools.partial(
        _is_there, cache, sha256=sha256, sampling=sampling, window=window, verify=verify
    )
    if there():
        return False
    with cache.locked(sha256, sampling=entry_key(sampling.fingerprint, window=window)):
        if there():
            return False
        source = SourceFile.of(file)
        decoded = decode(file, sampling=sampling, window=window)
        if decoded.clip.sha256 != sha256:
            raise VideoError(
                f"{file}: found sha256 {decoded.clip.sha256[:12]}, wanted {sha256[:12]}: "
                "the file changed while it was read"
            )
        cache.write(decoded.frames, clip=decoded.clip, sampling=sampling, source=source, sync=sync)
    return True


def _is_there(
    cache: ClipCache,
    *,
    sha256: str,
    sampling: VideoSampling,
    window: Window | None,
    verify: bool,
) -> bool:
    header: EntryHeader | None = None
    key = entry_key(sampling.fingerprint, window=window)
    with contextlib.suppress(CorruptEntryError):
        if not verify:
            header = cache.header(sha256, sampling=key)
        elif entry := cache.read(sha256, sampling=key):
            header = entry.header
    return header is not None and is_entry_of(
        header, sha256=sha256, sampling=sampling, window=window
    )


def _content(file: Path, pointer: PathPointer | None) -> str:
    """sha256 of a file; one that is gone, or unchanged, is what it was when it was cached."""
    if pointer is not None:
        with contextlib.suppress(OSError):
            if pointer.source != SourceFile.of(file):
                return file_digest(file)
        return pointer.sha256
    return file_digest(file)


def _reason(wanted: _Wanted, *, header: EntryHeader | None, found: Sequence[EntryHeader]) -> str:
    if header is not None:
        return "the cache entry is of another clip"
    if any(other.clip.sampling == wanted.fingerprint for other in found):
        return "the cache entries of this source are of other parts of it"
    if found:
        return "the cache entries of this source have other sampling parameters"
    if wanted.cached is not None:
        return "the source file changed after it was cached"
    return "no cache entry of this source"


def _explanation(
    wanted: _Wanted,
    reason: str,
    *,
    found: Sequence[EntryHeader],
    sampling: VideoSampling,
    folder: Path,
) -> str:
    parameters = describe(sampling)
    if wanted.fingerprint != sampling.fingerprint:
        parameters = f"sampling {wanted.fingerprint} (this process samples with {parameters})"
    lines = [f"{wanted.uri}: {reason}"]
    if (cached := wanted.cached) is not None:
        lines.append(
            f"cached from content {cached.sha256[:12]} of {cached.written_at:%Y-%m-%d}, "
            f"the file is now {wanted.sha256[:12]}"
        )
    part = _part_of(wanted.window)
    lines.append(
        f"wanted: content {wanted.sha256[:12]}{part} {parameters}{_frames_of(wanted.clip)}"
    )
    lines += [
        f"found:  content {header.clip.sha256[:12]}{_part_of(header.clip.window_s)} "
        f"{describe(header.sampling)}{_frames_of(header.clip)}{_named(header, wanted.clip)}"
        for header in found
    ] or ["found:  nothing"]
    options = " ".join(
        f"--{name.replace('_', '-')} {setting}" for name, setting in sampling.model_dump().items()
    )
    lines.append(
        f"make it with: tempsamp data preprocess --input ROWS.jsonl --cache {folder} "
        f"--video-root {Path(wanted.uri).parent} {options}"
    )
    return "\n".join(lines)


def _part_of(window: Window | None) -> str:
    return "" if window is None else f", {window_in_words(window)} of it,"


def _frames_of(clip: ClipRef | None) -> str:
    if clip is None:
        return ""
    height_px, width_px = clip.frame_hw
    return f": {len(clip.frame_indices)} frames of {width_px}x{height_px} by {clip.decoder}"


def _named(header: EntryHeader, clip: ClipRef | None) -> str:
    return f" (differs in {', '.join(header.differences(clip))})" if clip is not None else ""


@contextlib.contextmanager
def _blamed_on(error: CorruptEntryError) -> Iterator[None]:
    """A failure to decode says that it was damage that made decoding necessary."""
    try:
        yield
    except VideoError as second:
        raise VideoError(f"{error}; its source cannot be decoded again: {second}") from second
