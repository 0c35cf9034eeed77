"""What decides an answer, saved beside the answers: `RunSettings` → fingerprint, differences.

A run that goes on with other settings than it began with would be two halves of nothing, so it is
refused with the difference (`agree_or_refuse`). What only decides how much is asked and how fast
(--limit, --shard, --concurrency) is not part of it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from common.errors import ConfigError
from common.messages import Mode
from common.model.checks import FILES, matches
from common.queue.disk import write_file
from common.video.sampling import VideoSampling
from jobs.asking.openai.media import FramesAs
from jobs.evaluation.scoring.predictions import AnswerMode, Task

FILE = "settings.json"
MAX_TOKENS = 512
"""SPEC A9."""
MAX_TOKENS_HIGHLIGHTS = 1024
"""The longest true answer of QVHighlights' validation set has 712: 75 times and 75 scores."""
MAX_TOKENS_THINK = 2048
"""The paper's."""
AGREEMENT_SAMPLES = 8
MIN_AGREEMENT_SAMPLES = 2
LABELS = ("name", "commit")
"""Of a checkpoint: where it came from does not decide an answer, and its content is its digest."""


class Record(BaseModel):
    """Base of what is written to settings.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Checkpoint(Record):
    """Weights on disk, served by our own replica."""

    kind: Literal["checkpoint"] = "checkpoint"
    name: str
    """Of its folder, or its id as it was written; the same content is the same checkpoint."""
    commit: str | None = None
    """Of an id: what its revision meant."""
    sha256: str
    """Over the names and contents of its files."""


class Served(Record):
    """Weights that running replicas serve."""

    kind: Literal["served"] = "served"
    version: int
    """Policy version; 0 is the checkpoint that the replicas started from."""
    run_tag: str | None = None
    """Of the run that made the weights, as replicas have it from its learner."""
    sha256: str | None = None
    """Of that checkpoint, when --model names it."""


class OpenAIServer(Record):
    """What somebody else's server calls its model; which weights these are, it does not say."""

    kind: Literal["openai"] = "openai"
    url: str
    """Base URL, without credentials."""
    served_model: str
    frames_as: FramesAs


Model = Checkpoint | Served | OpenAIServer


class AnswerSampling(Record):
    """How answers are generated; the scored one is greedy."""

    max_tokens: Mapping[Mode, int]
    num_samples: int
    """Further answers at temperature 1, for self-agreement and what greedy decoding hides."""
    sampled: Literal["queries", "clips"] = "queries"
    """Whether every query gets them, or the first of each clip."""
    seed: int


def answer_sampling(
    *, task: Task, max_tokens: int | None, samples: int | None, by_agreement: bool, seed: int
) -> AnswerSampling:
    """Lengths as an option or a run file has them, else those of SPEC A9 and the paper.

    Args:
        task: what is asked for; highlights are longer.
        max_tokens: of both modes; None: each mode's own.
        samples: further answers; None: as many as the selector takes.
        by_agreement: whether it is the one that reads them.
        seed: of the samples.

    Raises:
        ConfigError: too few samples to agree.
    """
    if samples is None:
        samples = AGREEMENT_SAMPLES if by_agreement else 0
    if by_agreement and samples < MIN_AGREEMENT_SAMPLES:
        raise ConfigError(
            f"--samples: found {samples}, wanted at least {MIN_AGREEMENT_SAMPLES} for "
            "--selector agreement"
        )
    short = MAX_TOKENS_HIGHLIGHTS if task == "highlights" else MAX_TOKENS
    return AnswerSampling(
        max_tokens={"answer": max_tokens or short, "think": max_tokens or MAX_TOKENS_THINK},
        num_samples=samples,
        seed=seed,
    )


class RunSettings(Record):
    """Everything that decides an answer to one benchmark."""

    bench: str
    annotations_sha256: str
    model: Model
    task: Task = "moments"
    """Settings of runs older than the choice do not say."""
    mode: AnswerMode
    prompt: str
    """Name of the protocol's prompt."""
    templates: Mapping[Mode, str]
    """Its words."""
    sampling: AnswerSampling
    clip: VideoSampling

    @property
    def fingerprint(self) -> str:
        """Hex digest of the canonical JSON; stands on every line of predictions."""
        content = self.model_dump(mode="json")
        for label in LABELS:
            content["model"].pop(label, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def model_name(self) -> str:
        """What tables call the model."""
        if isinstance(self.model, Checkpoint):
            return self.model.name
        if isinstance(self.model, OpenAIServer):
            return self.model.served_model
        return f"served weights, version {self.model.version}"

    @property
    def weight_version(self) -> int | None:
        """Policy version that must answer: our own replica's checkpoint is 0; None where a server
        does not say."""
        if isinstance(self.model, OpenAIServer):
            return None
        return self.model.version if isinstance(self.model, Served) else 0

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Modes in which every query is asked."""
        return asked_modes(self.mode)


def asked_modes(mode: AnswerMode) -> tuple[Mode, ...]:
    """The modes in which every query is asked: mixing needs both."""
    if mode == "answer" or mode == "think":
        return (mode,)
    return ("answer", "think")


def agree_or_refuse(folder: Path, *, settings: RunSettings, knob: str = "--out") -> None:
    """Save the settings of a new run; compare with those of an interrupted one.

    Raises:
        ConfigError: they differ, or those of the interrupted run cannot be read; names each
            difference, or the file and the way out.
    """
    path = folder / FILE
    if not path.is_file():
        write_file(path, settings.model_dump_json(indent=1) + "\n", knob=knob)
        return
    found = _read(path)
    wanted = settings.model_dump(mode="json")
    for document in (found, wanted):
        for label in LABELS:
            document.get("model", {}).pop(label, None)
    if different := list(_differences(found, wanted)):
        raise ConfigError(
            f"{path}: this run began with other settings:\n  "
            + "\n  ".join(different)
            + "\nuse them again, or another --out"
        )


def checkpoint_digest(folder: Path) -> str:
    """Hex sha256 over names and contents of the files a model is loaded from, read in pieces.

    What else lies in the folder differs between a clone and what was fetched of the same commit.

    Raises:
        ConfigError: no checkpoint there.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--model: found no {folder / 'config.json'}, wanted a checkpoint folder")
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if not matches(path.name, FILES):
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name} {content}\n".encode())
    return whole.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """As it stands there, be it of an older version: differences are named one by one."""
    try:
        found = dict(json.loads(path.read_bytes()))
        found["model"] = dict(found["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: found no settings of a run ({error}), wanted those that the answers beside "
            "it were made with: delete that folder to ask anew, or use another --out"
        ) from error
    return found


def _differences(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            inner = f"{where}.{key}" if where else key
            yield from _differences(found.get(key), wanted.get(key), inner)
    elif found != wanted:
        yield f"{where}: found {found!r}, wanted {wanted!r}"
