"""Files that survive a power cut: synced before they are renamed, lines whole or cut.

A rename is atomic, but what it names may reach the disk after it: files first, then their folders,
then the rename, then the folder it happened in (`common.queue.disk`).
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from common.errors import CheckpointError
from common.queue import disk
from common.queue.disk import sync as sync

logger = logging.getLogger(__name__)


def sync_tree(folder: Path) -> None:
    """Everything below a folder, and the folder itself last."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(path, name))
        sync(Path(path))


def replace_text(path: Path, text: str) -> None:
    """The whole text or, whatever happens, what was there before.

    Raises:
        CheckpointError: it cannot be written.
    """
    with _said(path):
        disk.replace_text(path, text)


def append(path: Path, line: str, *, synced: bool = False) -> None:
    """Add a line to a file; `synced`: it is on the disk when this returns.

    Raises:
        CheckpointError: it cannot be written; the torn line is cut when the run is resumed.
    """
    with _said(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        if synced:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"learner.run_dir: {path}: {disk.reason(error, path)}: make room and resume (--resume)"
        ) from error


def cut_torn_line(path: Path) -> None:
    """Cut a last line that a crash or a full disk left incomplete, with a log line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
    if last and not _is_json(last):
        whole = whole[: -len(last)]
    if (torn := len(content) - len(whole)) == 0:
        return
    logger.warning("torn last line cut", extra={"path": str(path), "bytes": torn})
    os.truncate(path, len(whole))
    sync(path)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
