"""`shared.model` and `--model` as written → a local folder that can be loaded.

    folder, or ORG/NAME[@revision] -> [common.model.hub] -> ModelFolder

Whoever loads a model asks here first, before anything heavy is imported: a replica, the learner,
`tempsamp eval`, `tempsamp ground`. Folders and what was fetched pass the same checks; what is in
the tensors is not looked at.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.model.checks import FILES, SETTINGS, WANTED, Say, problem

logger = logging.getLogger(__name__)

DEFAULT_REVISION = "main"

_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_ID = re.compile(
    rf"(?!.*\.\.)(?![^@]*--)(?P<repo>{_NAME}/{_NAME})(?<!\.git)(?:@(?P<revision>\w[\w.+/-]*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine's disk."""

    path: Path
    name: str
    """What tables call it: the id as it was written, or the folder's name."""
    commit: str | None
    """Of an id: what its revision meant when it was fetched."""


def fetched(
    model: str, *, knob: str, say: Say = logger.info, with_weights: bool = True
) -> ModelFolder:
    """The folder of a model; an id is fetched first, which can take minutes and is said.

    Args:
        model: folder, or id with or without revision (branch, tag or commit). A folder wins.
        knob: where `model` was written, for messages: shared.model or --model.
        say: told what is fetched from where, and how far it is.
        with_weights: whether they are needed, or configuration alone.

    Raises:
        ConfigError: no such folder or model, or one that cannot be loaded; one line.
    """
    try:
        return _found(model, say=say, with_weights=with_weights)
    except ConfigError as error:
        raise ConfigError(f"{knob}: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{knob}: found {model!r}: {error}, wanted {WANTED}") from error


def _found(model: str, *, say: Say, with_weights: bool) -> ModelFolder:
    path, commit = Path(os.path.expanduser(model)), None
    if not (model and path.is_dir()):
        path = _from_hub(model, path, say=say, patterns=FILES if with_weights else SETTINGS)
        commit = path.name
    if wrong := problem(path, with_weights=with_weights):
        raise ConfigError(wrong)
    return ModelFolder(path, name=model if commit else path.resolve().name, commit=commit)


def _from_hub(model: str, path: Path, *, say: Say, patterns: tuple[str, ...]) -> Path:
    """Where an id was fetched to.

    Raises:
        ConfigError: it is no id, or a path that leads nowhere.
    """
    if model and path.exists():
        raise ConfigError(f"found the file {path}, wanted the folder that holds the model")
    if model.startswith(("/", "./", "../", "~")):
        raise ConfigError(f"found no folder {path}, wanted {WANTED}")
    if (found := _ID.fullmatch(model)) is None:
        raise ConfigError(
            f"found {model!r}, neither a folder in {Path.cwd()} nor an id, wanted {WANTED}"
        )
    from common.model import hub

    return hub.snapshot(
        found["repo"], found["revision"] or DEFAULT_REVISION, patterns=patterns, say=say
    )
