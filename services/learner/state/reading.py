"""Which checkpoint a run goes on from, and what is said when it cannot.

    newest_whole(<run_dir>/checkpoints) -> folder, damaged ones put aside
    with loading(folder): …                what fails inside names the folder and the way out

Going back is safe: an older checkpoint holds the prompts that were outstanding then and the size of
the ledger, so what came after it is done again and stands in the ledger once. It is said, because
steps are lost. Without a whole one a run never begins anew by itself: its ledger would be cut.
"""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError
from torch.distributed.checkpoint.api import CheckpointException

from common.errors import CheckpointError, ConfigError
from services.learner.state.manifest import fault_of

logger = logging.getLogger(__name__)

DAMAGED = ".damaged"
_NAME = re.compile(r"step-(\d{6,})")


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step)


def list_damaged(folder: Path) -> list[Path]:
    """What was put aside, by this start or an earlier one."""
    return sorted(folder.glob(f"step-*{DAMAGED}"))


def newest_whole(folder: Path) -> Path | None:
    """Rank 0; damaged ones are put aside, so that nobody takes them for the newest.

    Raises:
        CheckpointError: there are some, or were some, and none is whole.
        ConfigError: they cannot be read.
    """
    try:
        for checkpoint in reversed(list_checkpoints(folder)):
            if (fault := fault_of(checkpoint)) is None:
                return checkpoint
            _put_aside(checkpoint, fault)
    except OSError as error:
        raise ConfigError(
            f"learner.run_dir: {error.filename or folder}: {error.strerror or error}, wanted "
            "checkpoints that can be read; nothing was changed"
        ) from error
    if damaged := list_damaged(folder):
        faults = "; ".join(f"{path.name}: {fault_of(path) or 'put aside'}" for path in damaged)
        raise CheckpointError(
            f"learner.run_dir: found no whole checkpoint in {folder} ({faults}), wanted one: bring "
            "a copy back, or start a new run in another run_dir"
        )
    return None


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Load a checkpoint whose files are those that were written, as far as sizes say.

    Raises:
        CheckpointError: the content of a large file has changed.
        ConfigError: another version of this software wrote it.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"learner.run_dir: {folder / 'run_state.json'}: found another version's state "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}), wanted this one's: resume with "
            "the version that wrote it"
        ) from error
    except (CheckpointException, OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"learner.run_dir: {folder} cannot be loaded: {_reason(error)}; its files have the "
            f"sizes they were written with, so their content changed. {_way_out(folder)}"
        ) from error


def _way_out(folder: Path) -> str:
    older = [one.name for one in list_checkpoints(folder.parent) if _step(one) < _step(folder)]
    aside = f"move it to {folder.name}{DAMAGED}"
    if older:
        return f"To go on from {older[-1]}, {aside} and resume again (--resume)"
    return "Bring a copy back, or start a new run in another run_dir"


def _reason(error: BaseException) -> str:
    """Of the first rank that failed, in one line."""
    if isinstance(error, CheckpointException):
        error = next((cause for cause, _ in error.failures.values()), error)
    words = str(error).strip()
    return words.splitlines()[0] if words else repr(error)


def _put_aside(checkpoint: Path, fault: str) -> None:
    aside = checkpoint.with_suffix(DAMAGED)
    logger.warning(
        "checkpoint is not whole, trying the one before",
        extra={"path": str(checkpoint), "fault": fault, "moved_to": str(aside)},
    )
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
