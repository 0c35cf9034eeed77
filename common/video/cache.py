"""Stage B store of decoded clips: `write(frames, clip=ClipRef)`, `read(sha256) -> Entry`.

    FOLDER/<sha256[:2]>/<sha256>/<sampling fingerprint>.safetensors   one entry (`entry_key`)
    FOLDER/paths/<sha256 of a path>.json                              which content that path had

An entry is the tensor `frames` [F, H, W, 3] uint8 and one JSON `EntryHeader`, each with a blake3
digest: a flipped bit of either is found. Entries are written beside their place, synced and
renamed, by one process at a time (`locked`); a killed writer leaves nothing that could be read.
`jobs.data.preprocess` and `jobs.data.import_pt` write, `common.video.loader` decides what may be
used.

Reading copies the file into a fresh array instead of mapping it: an array that outlives a
replacement of its file on a network disk would kill the process with SIGBUS. Copy and digest take
33 ms for 90 MB.
"""

import contextlib
import datetime
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import blake3
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import VideoError
from common.messages import ClipRef
from common.video.direct_write import whole_blocks, write_file
from common.video.sampling import VideoSampling
from common.video.windows import entry_key

FORMAT_VERSION: Literal[1] = 1
MAX_LAYOUT_BYTES = 16_777_216
"""A safetensors layout beyond this is damage, not a header: 768 frames need 30 kB."""
PENDING_DIGEST = "0" * 64
"""Stands for the digest of frames that are being written."""
DISTRIBUTIONS = {"decord": "decord", "pyav": "av"}
"""Which installed package a decoder's version is read from."""

_HEADER, _HEADER_DIGEST = "header", "header_blake3"


class CorruptEntryError(VideoError):
    """An entry does not hold what was written: truncated, damaged, or not an entry at all."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceFile(_Record):
    """The video file as it was when its frames were decoded."""

    path: str
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Self:
        """What the file is now.

        Raises:
            OSError: there is no such file.
        """
        stat = os.stat(path)
        return cls(path=os.path.abspath(path), size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)


class EntryHeader(_Record):
    """What an entry says about its frames."""

    format_version: Literal[1] = FORMAT_VERSION
    clip: ClipRef
    sampling: VideoSampling
    """Canonical parameters; `clip.sampling` is their fingerprint."""
    source: SourceFile
    imported_from: str | None = None
    """Name of the old cache file the frames were taken from; None if we decoded them."""
    decoder_version: str
    frames_blake3: str
    """Hex digest of the frames' bytes."""
    written_by: str
    """Our version."""
    written_at: datetime.datetime

    def differences(self, clip: ClipRef) -> list[str]:
        """Names of the fields in which the entry is not `clip`; where the file lies is not one."""
        differ = [
            name
            for name in ClipRef.model_fields
            if name != "uri" and getattr(self.clip, name) != getattr(clip, name)
        ]
        if self.sampling.fingerprint != clip.sampling and "sampling" not in differ:
            differ.append("sampling")
        return differ


class PathPointer(_Record):
    """The content a path had when it was cached."""

    source: SourceFile
    sha256: str
    written_at: datetime.datetime


@dataclass(frozen=True)
class Entry:
    """A verified entry."""

    header: EntryHeader
    frames: npt.NDArray[np.uint8]
    """[F, H, W, 3] RGB, writable, the caller's own."""


class ClipCache:
    """A folder of entries, shared by any number of processes."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, sha256: str, *, sampling: str) -> Path:
        """Where the entry of this content and `entry_key` belongs."""
        return self.folder / sha256[:2] / sha256 / f"{sampling}.safetensors"

    def header(self, sha256: str, *, sampling: str) -> EntryHeader | None:
        """The header alone, some 0.2 ms; None without an entry.

        Raises:
            CorruptEntryError: the header is damaged or the file has the wrong length.
        """
        path = self.path(sha256, sampling=sampling)
        try:
            with path.open("rb") as file:
                return _read_header(file, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorruptEntryError(f"{path}: cannot be read: {error}") from error

    def headers(self, sha256: str) -> list[EntryHeader]:
        """Readable headers of all entries of a content, to say what there is."""
        found = []
        for path in sorted(self.path(sha256, sampling="any").parent.glob("*.safetensors")):
            with contextlib.suppress(CorruptEntryError):
                header = self.header(sha256, sampling=path.stem)
                found += [header] if header else []
        return found

    def read(self, sha256: str, *, sampling: str) -> Entry | None:
        """Header and frames, digests checked; None without an entry.

        Raises:
            CorruptEntryError: anything is not as it was written.
        """
        path = self.path(sha256, sampling=sampling)
        try:
            with path.open("rb") as file:
                header = _read_header(file, path)
                frames = np.fromfile(file, dtype=np.uint8)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorruptEntryError(f"{path}: cannot be read: {error}") from error
        if (digest := _blake3(frames)) != header.frames_blake3:
            raise CorruptEntryError(
                f"{path}: found frames with blake3 {digest[:12]}, wanted "
                f"{header.frames_blake3[:12]}: the entry is damaged"
            )
        return Entry(header=header, frames=frames.reshape(_shape(header.clip)))

    def write(
        self,
        frames: npt.NDArray[np.uint8],
        *,
        clip: ClipRef,
        sampling: VideoSampling,
        source: SourceFile,
        imported_from: str | None = None,
        sync: bool = True,
    ) -> EntryHeader:
        """Put an entry in its place; the caller holds `locked`.

        Args:
            frames: [F, H, W, 3] uint8 RGB, what `clip` names.
            clip: what a reader must ask for.
            sampling: the parameters that `clip.sampling` is the fingerprint of.
            source: the file the frames come from.
            imported_from: name of the foreign file that held the frames, if we did not decode.
            sync: wait until the entry is on the disk; else the caller does (`sync_file`). A killed
                process tears nothing either way, a power cut does, and the digests find it.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        assert frames.dtype == np.uint8
        assert frames.shape == _shape(clip), f"found {frames.shape}, wanted {_shape(clip)}"
        assert clip.sampling == sampling.fingerprint
        header = EntryHeader(
            clip=clip,
            sampling=sampling,
            source=source,
            imported_from=imported_from,
            decoder_version=_version(DISTRIBUTIONS[clip.decoder]),
            frames_blake3=PENDING_DIGEST,
            written_by=f"tempsamp {_version('tempsamp')}",
            written_at=datetime.datetime.now(datetime.UTC),
        )
        key = entry_key(clip.sampling, window=clip.window_s)
        path = self.path(clip.sha256, sampling=key)
        return _write_entry(path, frames, header=header, sync=sync)

    @contextlib.contextmanager
    def locked(self, sha256: str, *, sampling: str) -> Iterator[None]:
        """Be the only process, and thread, that makes this entry; waits for another one.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.path(sha256, sampling=sampling).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(path, wait=True):
            yield

    def pointer(self, path: str | os.PathLike[str]) -> PathPointer | None:
        """What is known of a path; None if nothing (readable) is."""
        try:
            return PathPointer.model_validate_json(self._pointer_path(path).read_bytes())
        except (OSError, ValidationError):
            return None

    def known_digest(self, path: str | os.PathLike[str]) -> str | None:
        """Content of an unchanged file (same size and mtime) without reading it.

        Raises:
            OSError: there is no such file.
        """
        pointer, now = self.pointer(path), SourceFile.of(path)
        return pointer.sha256 if pointer is not None and pointer.source == now else None

    def remember(self, source: SourceFile, *, sha256: str) -> None:
        """Write down which content a path has; `source` is from before its bytes were read."""
        path = self._pointer_path(source.path)
        pointer = PathPointer(
            source=source, sha256=sha256, written_at=datetime.datetime.now(datetime.UTC)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(pointer.model_dump_json(), encoding="utf-8")
        os.replace(temporary, path)

    def remove_leftovers(self) -> int:
        """Delete what killed writers left; entries that are being written now are left alone."""
        removed = 0
        for lock in [*self.folder.glob("??/*/*.lock")]:
            with _held(lock, wait=False) as held:
                if held:
                    removed += 1
                    shutil.rmtree(lock.with_suffix(".tmp"), ignore_errors=True)
        return removed

    def _pointer_path(self, path: str | os.PathLike[str]) -> Path:
        name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()
        return self.folder / "paths" / f"{name}.json"


def describe(sampling: VideoSampling) -> str:
    """`fps=2.0 min_frames=4 …`, for messages that compare."""
    return " ".join(f"{name}={setting}" for name, setting in sampling.model_dump().items())


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk.

    Raises:
        OSError: it cannot be written, or is not there.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _shape(clip: ClipRef) -> tuple[int, ...]:
    return (len(clip.frame_indices), *clip.frame_hw, 3)


def _blake3(frames: npt.NDArray[np.uint8]) -> str:
    """Measured on 90 MB, one thread: blake3 20 ms, sha256 50 ms, blake2b 95 ms."""
    return blake3.blake3(np.ascontiguousarray(frames).data.cast("B")).hexdigest()


@functools.cache
def _version(distribution: str) -> str:
    """Looked up once: reading package metadata takes half a millisecond an entry."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _read_header(file: IO[bytes], path: Path) -> EntryHeader:
    """The verified header; leaves `file` at the first byte of the frames."""
    try:
        layout = _read_layout(file)
        header = EntryHeader.model_validate_json(_header_text(layout["__metadata__"]))
        _check_layout(layout, header, num_bytes=os.fstat(file.fileno()).st_size - file.tell())
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptEntryError(
            f"{path}: not an entry of format {FORMAT_VERSION}: {str(error).splitlines()[0]}"
        ) from error
    return header


def _read_layout(file: IO[bytes]) -> Any:
    """The JSON at the start of a safetensors file: u64 length, then that many bytes."""
    num_bytes = int.from_bytes(file.read(8), "little")
    if not 0 < num_bytes <= MAX_LAYOUT_BYTES:
        raise ValueError(f"found a layout of {num_bytes} bytes, wanted 1 to {MAX_LAYOUT_BYTES}")
    return json.loads(file.read(num_bytes))


def _header_text(metadata: Mapping[str, str]) -> str:
    text = metadata[_HEADER]
    if blake3.blake3(text.encode()).hexdigest() != metadata[_HEADER_DIGEST]:
        raise ValueError("the header's digest is wrong")
    return text


def _check_layout(layout: Any, header: EntryHeader, *, num_bytes: int) -> None:
    shape = _shape(header.clip)
    wanted = {"dtype": "U8", "shape": list(shape), "data_offsets": [0, int(np.prod(shape))]}
    if layout["frames"] != wanted:
        raise ValueError(f"found frames {layout['frames']}, wanted {wanted}")
    if num_bytes != wanted["data_offsets"][1]:
        raise ValueError(f"found {num_bytes} bytes of frames, wanted {wanted['data_offsets'][1]}")


def _write_entry(
    path: Path, frames: npt.NDArray[np.uint8], *, header: EntryHeader, sync: bool
) -> EntryHeader:
    """Atomic: a reader finds the old entry, no entry, or the whole new one.

    Returns:
        The header with the digest of the frames.
    """
    # One name is enough: the writer holds the entry's lock.
    temporary = path.with_suffix(".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        header = _write_safetensors(temporary / path.name, frames, header=header)
        if sync:
            sync_file(temporary / path.name)
        os.replace(temporary / path.name, path)
    except OSError as error:
        failure = OSError(
            f"{path}: cannot write {frames.nbytes / 1e6:.1f} MB: {error}; free the disk or choose "
            "another cache folder"
        )
        failure.errno = error.errno
        raise failure from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return header


def _write_safetensors(
    path: Path, frames: npt.NDArray[np.uint8], *, header: EntryHeader
) -> EntryHeader:
    """What safetensors' `save_file` writes, but past the page cache where that is possible.

    The layout is padded with spaces, which the format allows, so that frames begin on a disk block.
    The disk takes the frames while their digest is computed; the layout holds it and comes last.
    """
    finished = header
    num_bytes = whole_blocks(len(_layout(header)))

    def layout() -> bytes:
        nonlocal finished
        finished = header.model_copy(update={"frames_blake3": _blake3(frames)})
        return (num_bytes - 8).to_bytes(8, "little") + _layout(finished)[8:].ljust(num_bytes - 8)

    write_file(path, frames, head=layout, head_bytes=num_bytes)
    return finished


def _layout(header: EntryHeader) -> bytes:
    """The start of a safetensors file: u64 length, then JSON; as long with any digest."""
    text = header.model_dump_json()
    metadata = {_HEADER: text, _HEADER_DIGEST: blake3.blake3(text.encode()).hexdigest()}
    shape = _shape(header.clip)
    tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, math.prod(shape)]}
    body = json.dumps({"__metadata__": metadata, "frames": tensor}).encode()
    return len(body).to_bytes(8, "little") + body


@contextlib.contextmanager
def _held(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock file and remove it at the end; yields False if another holds it (no waiting)."""
    descriptor = _acquire(path, wait=wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path, *, wait: bool) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder removed the file meanwhile: the lock guards nothing


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
