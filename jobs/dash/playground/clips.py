"""Videos that are asked about: `Clip`s by handles that nobody guesses.

    bytes -> Clips.receive() ┐
    name  -> Clips.choose()  ┴-> Clip -> its path, a strip of frames, parts that are cut out

What is uploaded or cut lies in a private temporary folder, deleted at the end; the oldest makes
room for the newest. Below a run's `shared.video.roots` videos are chosen by name, and stay where
they are. Neighbours: `.routes` asks, `jobs.ground.cut` cuts.
"""

import asyncio
import contextlib
import itertools
import math
import os
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.answers.spans import Span
from common.errors import VideoError
from common.queue.disk import writing
from common.rest.problems import Problem
from common.video.names import SUFFIXES
from common.video.roots import VideoRoots
from jobs.ground.cut import SUFFIXES as CUT_SUFFIXES
from jobs.ground.cut import Cut, cut

MEGABYTE = 10**6
KNOB = "--max-upload-mb"
WRITE_BYTES = 2**20
HANDLE_BYTES = 16
LONGEST_NAME_BYTES = 200
"""File systems take 255, and what is cut out gets a longer one."""
MOST_SEEN = 20_000
"""Entries of folders that one list looks at: "/" is a root, too."""
MOST_LISTED = 500
ANY_CONTAINER = ".mkv"


@dataclass(eq=False)
class Clip:
    """A video file, and what it holds."""

    handle: str
    name: str
    """As its user calls it."""
    path: Path
    is_ours: bool
    """It lies in our folder."""
    num_bytes: int = 0
    duration_s: float = 0.0
    width_px: int = 0
    height_px: int = 0
    uses: int = 0
    """Questions, cuts and uploads that are at work on it."""
    strip: bytes | None = field(default=None, repr=False)

    def named(self, said: str) -> str:
        """The same words, with the name that its user knows."""
        return said.replace(str(self.path), self.name)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Videos below roots."""

    names: Sequence[str]
    is_all: bool
    """False: there are more than are listed, or looked at."""


class Clips:
    """All of them; `close` deletes what lies in our folder."""

    def __init__(self, *, most_bytes: int) -> None:
        """`most_bytes`: that may lie in our folder at once."""
        self.most_bytes = most_bytes
        self._clips: OrderedDict[str, Clip] = OrderedDict()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Nothing of it is left."""
        self._clips.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def room(self, name: str) -> Path:
        """A folder of that name in ours.

        Raises:
            OutputError: the disk has no room.
        """
        if self._folder is None:
            with writing(Path(tempfile.gettempdir()), knob="TMPDIR"):
                self._folder = tempfile.TemporaryDirectory(prefix="tempsamp-dash-")
        folder = Path(self._folder.name) / name
        with writing(folder, knob="TMPDIR"):
            folder.mkdir(exist_ok=True)
        return folder

    def get(self, handle: str) -> Clip:
        """The clip of that handle.

        Raises:
            Problem: 404: there is none, or no longer.
        """
        found = self._clips.get(handle)
        if found is None or not found.path.is_file():
            raise Problem(
                404,
                "video: it is no longer here: it made room for others "
                f"({KNOB}), or was moved; choose it again",
                field="clip",
            )
        return found

    @contextlib.contextmanager
    def using(self, handle: str) -> Iterator[Clip]:
        """It stays where it is meanwhile.

        Raises:
            Problem: as `get`.
        """
        clip = self.get(handle)
        clip.uses += 1
        try:
            yield clip
        finally:
            clip.uses -= 1

    async def receive(
        self, chunks: AsyncIterator[bytes], *, name: str, declared_bytes: int | None
    ) -> Clip:
        """Write an upload and look at it.

        Args:
            chunks: of the file.
            name: what its user calls it.
            declared_bytes: its size, if that was said.

        Raises:
            Problem: 413: too large; 503: no room while others are at work.
            OutputError: the disk has none.
            VideoError: it is no video.
        """
        if (declared_bytes or 0) > self.most_bytes:
            raise self._too_large(f"{math.ceil((declared_bytes or 0) / MEGABYTE):,}")
        clip = self._new(safe_name(name))
        clip.uses = 1
        try:
            with writing(clip.path, knob="TMPDIR"):
                await self._write(clip, chunks)
            return await self._looked_at(clip)
        except BaseException:
            self._drop(clip)
            raise
        finally:
            clip.uses = 0

    async def choose(self, name: str, *, roots: Sequence[Path]) -> Clip:
        """A video below one of the roots.

        Raises:
            VideoError: there is none of that name, or it is no video.
        """
        path = await asyncio.to_thread(_below, roots, name)
        clip = next((one for one in self._clips.values() if one.path == path), None)
        if clip is None:
            clip = self._keep(Clip(_handle(), name, path, is_ours=False))
        try:
            return await self._looked_at(clip)
        except VideoError:
            self._clips.pop(clip.handle, None)
            raise

    async def cut_out(self, handle: str, span: Span) -> tuple[Clip, Cut]:
        """A part of a clip, as a clip of its own.

        Raises:
            Problem: as `get`.
            VideoError, OutputError: as `jobs.ground.cut.cut`.
        """
        with self.using(handle) as source:
            suffix = source.path.suffix.lower()
            suffix = suffix if suffix in CUT_SUFFIXES else ANY_CONTAINER
            stem = f"{Path(source.name).stem}-{span[0]:.2f}-{span[1]:.2f}"
            part = self._new(safe_name(stem + suffix))
            part.uses = 1
            try:
                made = await asyncio.to_thread(cut, source.path, span=span, output=part.path)
                part.num_bytes = part.path.stat().st_size
                self._make_room(0)
            except BaseException:
                self._drop(part)
                raise
            finally:
                part.uses = 0
        return part, made

    async def strip_of(self, handle: str) -> bytes | None:
        """JPEG of frames along it; None when none can be read.

        Raises:
            Problem: as `get`.
        """
        from jobs.evaluation.showing.timelines import strip_jpeg

        with self.using(handle) as clip:
            if clip.strip is None:
                clip.strip = await asyncio.to_thread(strip_jpeg, clip.path)
            return clip.strip

    async def _write(self, clip: Clip, chunks: AsyncIterator[bytes]) -> None:
        with clip.path.open("wb") as file:
            waiting = bytearray()
            async for chunk in chunks:
                waiting += chunk
                if len(waiting) >= WRITE_BYTES:
                    await self._append(clip, file.write, waiting)
                    waiting = bytearray()
            await self._append(clip, file.write, waiting)

    async def _append(
        self, clip: Clip, write: Callable[[bytearray], int], content: bytearray
    ) -> None:
        if clip.num_bytes + len(content) > self.most_bytes:
            raise self._too_large(f"more than {self.most_bytes / MEGABYTE:,.0f}")
        held = self._make_room(len(content))
        if held + len(content) > self.most_bytes:
            raise Problem(
                503,
                f"video: found {held / MEGABYTE:,.0f} MB of others at work, wanted room within "
                f"{self.most_bytes / MEGABYTE:,.0f} MB: come again, or {KNOB}",
                headers={"Retry-After": "10"},
            )
        clip.num_bytes += len(content)
        await asyncio.to_thread(write, content)

    async def _looked_at(self, clip: Clip) -> Clip:
        from common.video.frames import probe

        try:
            found = await asyncio.to_thread(probe, clip.path)
        except VideoError as error:
            raise VideoError(clip.named(str(error))) from error
        clip.duration_s = found.duration_s
        clip.width_px, clip.height_px = found.width_px, found.height_px
        return clip

    def _new(self, name: str) -> Clip:
        """In a folder of its own, as two may be called the same."""
        handle = _handle()
        return self._keep(Clip(handle, name, self.room(handle) / name, is_ours=True))

    def _keep(self, clip: Clip) -> Clip:
        self._clips[clip.handle] = clip
        return clip

    def _drop(self, clip: Clip) -> None:
        self._clips.pop(clip.handle, None)
        if clip.is_ours:
            shutil.rmtree(clip.path.parent, ignore_errors=True)

    def _too_large(self, found: str) -> Problem:
        most = self.most_bytes / MEGABYTE
        return Problem(
            413, f"video: found {found} MB, wanted at most {most:,.0f} MB: {KNOB}", field="body"
        )

    def _make_room(self, num_bytes: int) -> int:
        """Delete the oldest that nobody is at work on; bytes that are still held."""
        ours = [clip for clip in self._clips.values() if clip.is_ours]
        held = sum(clip.num_bytes for clip in ours)
        for clip in ours:
            if held + num_bytes <= self.most_bytes:
                break
            if not clip.uses:
                self._drop(clip)
                held -= clip.num_bytes
        return held


def listed(roots: Sequence[Path], *, text: str = "") -> Listed:
    """Names of videos below roots in which a text stands, in order of their folders."""
    seen = list(itertools.islice(_entries_below(roots), MOST_SEEN + 1))
    wanted = text.strip().lower()
    names = [one for one in seen if one.lower().endswith(SUFFIXES) and wanted in one.lower()]
    is_all = len(seen) <= MOST_SEEN and len(names) <= MOST_LISTED
    return Listed(names=names[:MOST_LISTED], is_all=is_all)


def safe_name(name: str) -> str:
    """The last part of a name, as a file of ours may be called."""
    last = name.replace("\\", "/").rpartition("/")[2]
    plain = "".join(letter for letter in last if letter.isprintable()).strip().lstrip(".")
    stem, suffix = os.path.splitext(plain)
    room = LONGEST_NAME_BYTES - len(suffix.encode())
    short = stem.encode()[: max(0, room)].decode(errors="ignore")
    return f"{short}{suffix}" if short and room > 0 else "video"


def _entries_below(roots: Sequence[Path]) -> Iterator[str]:
    """Files relative to their root, and "" for a folder; hidden ones are not looked into."""
    for root in roots:
        for folder, folders, files in os.walk(root):
            yield ""
            folders[:] = sorted(one for one in folders if one[0] != ".")
            for file in sorted(files):
                yield os.path.relpath(os.path.join(folder, file), root)


def _below(roots: Sequence[Path], name: str) -> Path:
    """The first root that has it; what leads out of all of them is refused."""
    allowed = VideoRoots(roots)
    refusal = VideoError(f"{name!r}: found no video root, wanted some: shared.video.roots")
    for root in roots:
        try:
            return allowed.resolve(str(root.absolute() / name))
        except VideoError as error:
            refusal = error
    raise refusal


def _handle() -> str:
    return secrets.token_urlsafe(HANDLE_BYTES)
