"""Groups that a run keeps for who looks at it: `<run_dir>/groups/step-000083.jsonl.gz`.

The learner writes them (`services/learner/watching/groups.py`), `tempsamp dash` reads them. A file
holds one step as two gzip members, which `zcat` shows as one text of JSON lines: first a
`GroupSummary` a group, then, in the same order, a `KeptGroup` a group. Who lists or filters groups
unpacks the first, small member alone.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from common.messages import (
    ClipRef,
    FinishReason,
    Mode,
    Provenance,
    Scored,
    Strategy,
    Target,
    Timings,
    Verdict,
    VersionSpan,
)

FOLDER = "groups"
_NAME = re.compile(r"step-(\d{6,})\.jsonl\.gz")
NOTHING = 1e-9
"""An advantage of this size is rounding, as in `services.learner.objective.advantage`."""
LEVEL = 1
"""Of gzip: log-probabilities hardly shrink further, and a step waits for it."""
GZIP = 16 + zlib.MAX_WBITS
CHUNK_BYTES = 2**16

Span = tuple[float, float]
M = TypeVar("M", bound=BaseModel)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KeptAnswer(_Line):
    """One answer of a group, and what became of it."""

    provenance: Provenance
    text: str
    """Without special tokens."""
    tokens: tuple[str, ...]
    """Text of each token by itself; half a character is shown as U+FFFD."""
    logprobs: tuple[float, ...]
    """[len(tokens)] nats, of the engine that sampled it; empty for an injected row."""
    spans: tuple[Span, ...]
    """Seconds, as the run's parser reads the text."""
    marks_s: tuple[float, ...] = ()
    """Times of highlights, where those are asked for."""
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]
    verdict: Verdict
    advantage: float | None
    """What its tokens are weighted with in the loss; None: it was not trained on."""

    @property
    def is_read(self) -> bool:
        """Whether anything could be read in it."""
        return bool(self.spans or self.marks_s)

    @property
    def reward(self) -> float | None:
        """None without a verdict."""
        return self.verdict.reward if isinstance(self.verdict, Scored) else None


class GroupSummary(_Line):
    """What lists show and filters ask of a group."""

    step: Annotated[int, Field(ge=0)]
    prompt_id: str
    row_id: str
    epoch: int
    mode: Mode
    query: str
    video: str
    rewards: tuple[float | None, ...]
    """One an answer, an injected one last; None: without a verdict."""
    advantages: tuple[float | None, ...]
    has_injected: bool
    truth_beat_all: bool
    """The injected answer earned more than every other one."""
    all_tied: bool
    """No advantage is other than zero: the group taught nothing."""
    unread: int
    """Policy answers in which nothing could be read."""
    best_iou: float | None
    """Of the policy's answers; None where no IoU is computed."""

    @classmethod
    def of(cls, group: "KeptGroup") -> "GroupSummary":
        """What there is to say of a group."""
        policy = [answer for answer in group.answers if answer.provenance == "policy"]
        injected = [answer for answer in group.answers if answer.provenance == "injected"]
        ious = [
            answer.verdict.parts["iou"]
            for answer in policy
            if isinstance(answer.verdict, Scored) and "iou" in answer.verdict.parts
        ]
        advantages = tuple(answer.advantage for answer in group.answers)
        return cls(
            step=group.step,
            prompt_id=group.prompt_id,
            row_id=group.row_id,
            epoch=group.epoch,
            mode=group.mode,
            query=group.query,
            video=Path(group.clip.uri).name,
            rewards=tuple(answer.reward for answer in group.answers),
            advantages=advantages,
            has_injected=bool(injected),
            truth_beat_all=_beats(injected, policy),
            all_tied=all(abs(advantage or 0.0) <= NOTHING for advantage in advantages),
            unread=sum(not answer.is_read for answer in policy),
            best_iou=max(ious, default=None),
        )


class KeptGroup(_Line):
    """A group that was trained on."""

    step: Annotated[int, Field(ge=0)]
    prompt_id: str
    row_id: str
    epoch: int
    mode: Mode
    query: str
    target: Target
    clip: ClipRef
    strategy: Strategy
    replica: str
    timings: Timings
    prompt_tokens: int
    answers: tuple[KeptAnswer, ...]


def file_of(run_dir: Path, step: int) -> Path:
    """Where the groups of a step are."""
    return run_dir / FOLDER / f"step-{step:06d}.jsonl.gz"


def kept_steps(run_dir: Path) -> dict[int, Path]:
    """Files by step, oldest first."""
    folder = run_dir / FOLDER
    if not folder.is_dir():
        return {}
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def packed(groups: Sequence[KeptGroup]) -> bytes:
    """Content of a step's file."""
    return _member(map(GroupSummary.of, groups)) + _member(groups)


def read_summaries(path: Path) -> list[GroupSummary]:
    """What lists need of a file; the rest of it is not read.

    Raises:
        ConfigError: it cannot be read, or is none of ours.
    """
    with _opened(path) as file:
        return [_parsed(GroupSummary, line, path) for line in _lines(file, path)]


def read_groups(path: Path) -> list[KeptGroup]:
    """Everything of a file; see `read_summaries`."""
    with _opened(path) as file:
        _lines(file, path)
        return [_parsed(KeptGroup, line, path) for line in _lines(file, path)]


def _beats(injected: Sequence[KeptAnswer], policy: Sequence[KeptAnswer]) -> bool:
    truths = [answer.reward for answer in injected if answer.reward is not None]
    others = [answer.reward for answer in policy if answer.reward is not None]
    return bool(truths) and bool(others) and max(truths) > max(others)


def _member(lines: Iterable[BaseModel]) -> bytes:
    text = "".join(f"{line.model_dump_json()}\n" for line in lines)
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    return packer.compress(text.encode()) + packer.flush()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}: wanted groups of a step") from error


def _lines(file: BinaryIO, path: Path) -> list[bytes]:
    """Lines of the next member; the file stands behind it afterwards."""
    member = zlib.decompressobj(GZIP)
    parts = []
    try:
        while not member.eof:
            if not (packed_part := file.read(CHUNK_BYTES)):
                raise ConfigError(f"{path}: found a file that was cut, wanted groups of a step")
            parts.append(member.decompress(packed_part))
    except zlib.error as error:
        raise ConfigError(f"{path}: found no gzip ({error}), wanted groups of a step") from error
    file.seek(-len(member.unused_data), 1)
    return b"".join(parts).splitlines()


def _parsed(model: type[M], line: bytes, path: Path) -> M:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{path}: found {line[:80]!r}, wanted a {model.__name__}: {first['msg']}"
        ) from error
