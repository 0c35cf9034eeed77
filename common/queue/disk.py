"""Files that we write: places are tried before the work, files appear whole, faults are named.

    check_folder(out, knob="--out")           a place is refused before anything slow is done
    check_file(out, knob="--out", inputs=[…]) also one that would overwrite what is read
    with writing(path, knob="--out"): …       OSError → OutputError, with what is free
    with replacing(path) as file: …           a stream of bytes, whole or not at all
    replace_text(path, text)                  the whole text or what was there before, also after
                                              a power cut

Jobs use it for what options name, the learner for its run folder, which is why it lies beside the
run's ledger (`ledger.py`) and what reads lines (`lines.py`).
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from common.errors import ConfigError, OutputError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What systems say when there is no room: of the disk, of a user's share, of a process."""


def check_folder(folder: Path, *, knob: str, wanted: str = "a folder that can be written") -> None:
    """Refuse a folder that cannot be made or written in; it is made later, by who writes.

    Raises:
        ConfigError: a file is in the way, permission is missing, or the disk is full; names `knob`.
    """
    path = Path(os.path.abspath(folder))
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=there) as trial:
            trial.write(b"\0")
            trial.flush()
    except OSError as error:
        raise ConfigError(f"{knob}: found {there}: {reason(error, there)}, wanted {wanted}") from (
            error
        )


def check_file(path: Path, *, knob: str, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse a file that cannot be written or is read too; its folder is made later, by who writes.

    Args:
        path: of the file.
        knob: the option or setting that names it.
        inputs: files that the same command reads, by whatever links; None: an option without one.

    Raises:
        ConfigError: it is one of the inputs, is a folder, is write-protected, or `check_folder`
            refuses its folder.
    """
    overwritten = _same_file(path, inputs)
    if overwritten is not None:
        raise ConfigError(
            f"{knob}: found {path}, which would overwrite the input {overwritten}, wanted another "
            "file"
        )
    wanted = "a file that can be written"
    if path.is_dir():
        raise ConfigError(f"{knob}: found {path}, a folder, wanted {wanted}")
    if os.path.exists(path):
        if not os.access(path, os.W_OK, effective_ids=True):
            refusal = OSError(errno.EACCES, os.strerror(errno.EACCES))
            raise ConfigError(f"{knob}: found {path}: {reason(refusal, path)}, wanted {wanted}")
        if not path.is_file():  # a device or a pipe: written in place
            return
    check_folder(path.parent, knob=knob, wanted=wanted)


def check_files(outputs: Mapping[str, Path | None], *, inputs: Iterable[Path | None] = ()) -> None:
    """`check_file` of several outputs by their knobs, of which no two may be one file.

    Raises:
        ConfigError: as `check_file`, or two are one.
    """
    read = tuple(inputs)
    knobs: dict[Path, str] = {}
    for knob, path in outputs.items():
        if path is None:
            continue
        check_file(path, knob=knob, inputs=read)
        other = knobs.setdefault(path.resolve(), knob)
        if other != knob and (path.is_file() or not path.exists()):  # /dev/null takes all
            raise ConfigError(f"{knob}: found {path}, which is {other}; wanted another file")


def _same_file(path: Path, others: Iterable[Path | None]) -> Path | None:
    """The first of `others` that is this file; what is not there yet overwrites nothing."""
    try:
        here = os.stat(path)
    except OSError:
        return None
    for other in others:
        # A video may be called anything in a row, also what no path can be.
        with contextlib.suppress(OSError, ValueError):
            if other is not None and os.path.samestat(here, os.stat(other)):
                return other
    return None


@contextlib.contextmanager
def writing(path: Path, *, knob: str, kept: str = "") -> Iterator[None]:
    """What fails inside is the disk's fault.

    Args:
        path: of the file or folder.
        knob: the option or setting that names it.
        kept: what is left of the work, and how it goes on; ends the message.

    Raises:
        OutputError: names both, the system's reason, and what is free if that is it.
    """
    try:
        yield
    except OSError as error:
        more = f"; {kept}" if kept else ""
        raise OutputError(f"{knob}: {path}: {reason(error, path)}{more}") from error


def reason(error: OSError, path: Path) -> str:
    """The system's words; with what is free where there is no room, and who may not."""
    words = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{words} (user {os.geteuid()})"
    if error.errno not in FULL:
        return words
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    return f"{words} (found {shutil.disk_usage(there).free / 1e6:,.0f} MB free)"


def write_file(path: Path, text: str, *, knob: str, kept: str = "") -> None:
    """Write what an option names, whole; makes its folder.

    Raises:
        OutputError: as `writing`.
    """
    with writing(path, knob=knob, kept=kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            replace_text(path, text)


def replace_text(path: Path, text: str) -> None:
    """The whole text or, whatever happens, what was there before.

    A rename is atomic, but what it names may reach the disk after it: the file first, then the
    rename, then its folder.
    """
    path = Path(os.path.realpath(path))  # what a link names is replaced, not the link
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when it is done and not empty; makes its folder."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as new:
            yield new
        if partial.stat().st_size:
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
