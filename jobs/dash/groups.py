"""Groups that a run kept: listed, filtered, one in full, the same query elsewhere.

    <run_dir>/groups -> GroupIndex.summaries() -> chosen(...) -> a page of a list
                     -> GroupIndex.group(step, prompt_id) -> shown(...) -> GroupView

A file is read again only if it changed. Neighbours: `common/queue/kept_groups.py` (the files).
"""

import functools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import BaseModel

from common.answers.reading import read_spans
from common.errors import ConfigError
from common.messages import HighlightsTarget, Scored, SpansTarget, Unscored, Window
from common.queue.kept_groups import (
    FOLDER,
    NOTHING,
    GroupSummary,
    KeptAnswer,
    KeptGroup,
    Span,
    file_of,
    kept_steps,
    read_groups,
    read_summaries,
)
from jobs.local.collector import nothing_collected

Kind = Literal["all", "truth_beat_all", "all_tied", "unread"]
Order = Literal["newest", "oldest", "lowest", "highest"]
MOST_TOKENS = 4096
"""Of an answer on the page."""
MOST_ELSEWHERE = 200
RACY_S = 2.0
"""A folder that changed so lately may change again under the same time."""
FEW = 200
"""Files that are read in a moment."""
OPEN_STEPS = 4
"""Files whose groups stay at hand: one group is asked for by several requests."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a list is filtered by."""

    text: str = ""
    """Stands in query, video or row id, whatever its case; `row:17` is that row alone."""
    kind: Kind = "all"
    low: float | None = None
    """Least mean reward of the policy's answers."""
    high: float | None = None
    first_step: int | None = None
    last_step: int | None = None
    order: Order = "newest"

    def fits(self, group: GroupSummary) -> bool:
        """Whether a group is to be listed."""
        return self._fits_text(group) and self._fits_kind(group) and self._fits_range(group)

    def _fits_text(self, group: GroupSummary) -> bool:
        wanted = self.text.strip().lower()
        if wanted.startswith("row:"):
            return group.row_id == wanted.removeprefix("row:").strip()
        return not wanted or any(
            wanted in field.lower() for field in (group.query, group.video, group.row_id)
        )

    def _fits_kind(self, group: GroupSummary) -> bool:
        match self.kind:
            case "all":
                return True
            case "unread":
                return group.unread > 0
            case "truth_beat_all":
                return group.truth_beat_all
            case "all_tied":
                return group.all_tied

    def _fits_range(self, group: GroupSummary) -> bool:
        if self.first_step is not None and group.step < self.first_step:
            return False
        if self.last_step is not None and group.step > self.last_step:
            return False
        if self.low is None and self.high is None:
            return True
        mean = mean_reward(group)
        if mean is None:
            return False
        return (self.low is None or mean >= self.low) and (self.high is None or mean <= self.high)


class GroupIndex:
    """The groups of one run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._read: dict[int, tuple[tuple[int, int], list[GroupSummary]]] = {}
        self._known: list[GroupSummary] = []
        self._folder: tuple[int, int] | None = None
        self._since_s = 0.0
        """When the folder was first seen as it is."""
        self._rests = False
        """Whether all of it was read, long enough after that."""
        self._lock = threading.Lock()
        self._opened = functools.lru_cache(maxsize=OPEN_STEPS)(read_marked)

    def summaries(self) -> list[GroupSummary]:
        """Of all kept groups, oldest step first; a file that cannot be read is left out.

        Ten thousand files are looked at only if the folder changed: each comes by a rename.
        """
        with self._lock:
            mark = _mark_of_folder(self._run_dir / FOLDER)
            if mark != self._folder:
                self._folder, self._since_s, self._rests = mark, time.monotonic(), False
            if self._rests:
                return self._known
            is_old = time.monotonic() - self._since_s >= RACY_S
            paths = kept_steps(self._run_dir)
            with nothing_collected():
                known = {step: self._step(step, path) for step, path in paths.items()}
            self._read = {step: found for step, found in known.items() if found is not None}
            self._known = [group for _, groups in self._read.values() for group in groups]
            # A file that was being thinned out, or cannot be read yet, is tried again.
            self._rests = is_old and len(self._read) == len(paths)
            return self._known

    def newest(self, least: int) -> list[GroupSummary] | None:
        """At least so many of the newest steps, as `summaries` has them; what can be shown before
        the others are read. None: all of them are, or will be at once.
        """
        paths = kept_steps(self._run_dir)
        if self._read or len(paths) <= FEW:
            return None
        found: list[GroupSummary] = []
        for step in reversed(paths):
            read = self._step(step, paths[step])
            found = [*(read[1] if read else ()), *found]
            if len(found) >= least:
                break
        return found

    def group(self, step: int, prompt_id: str) -> KeptGroup:
        """One of them.

        Raises:
            KeyError: there is none of that name, or no longer.
        """
        path = file_of(self._run_dir, step)
        try:
            groups = self._opened(path, _mark(path))
        except (OSError, ConfigError) as error:
            raise KeyError(f"step {step} is not kept, or no longer ({error})") from error
        for group in groups:
            if group.prompt_id == prompt_id:
                return group
        raise KeyError(f"step {step} has no group {prompt_id!r}")

    def _step(self, step: int, path: Path) -> tuple[tuple[int, int], list[GroupSummary]] | None:
        try:
            mark = _mark(path)
            if step in self._read and self._read[step][0] == mark:
                return self._read[step]
            return mark, read_summaries(path)
        except (OSError, ConfigError):  # thinned out meanwhile, or cut
            return None


def read_marked(path: Path, _mark: tuple[int, int]) -> list[KeptGroup]:
    """The groups of a file as it was at a mark."""
    return read_groups(path)


def _mark_of_folder(folder: Path) -> tuple[int, int]:
    try:
        return _mark(folder)
    except OSError:
        return -1, -1


def _mark(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def chosen(groups: Sequence[GroupSummary], wanted: Wanted) -> list[GroupSummary]:
    """Those that fit, in the order asked for."""
    found = [group for group in groups if wanted.fits(group)]
    if wanted.order == "oldest":
        return found
    if wanted.order == "newest":
        return sorted(found, key=lambda group: -group.step)
    sign = 1 if wanted.order == "lowest" else -1
    return sorted(found, key=lambda group: (sign * (mean_reward(group) or 0.0), -group.step))


def mean_reward(group: GroupSummary) -> float | None:
    """Of the policy's answers with a verdict."""
    rewards = group.rewards[:-1] if group.has_injected else group.rewards
    present = [reward for reward in rewards if reward is not None]
    return fmean(present) if present else None


class Place(BaseModel):
    """A group of the same query."""

    run: str
    step: int
    prompt_id: str
    mean_reward: float | None


def elsewhere(
    group: GroupSummary | KeptGroup, runs: Sequence[tuple[str, Sequence[GroupSummary]]]
) -> list[Place]:
    """Where the same query about the same video was answered too, other runs included."""
    video = group.video if isinstance(group, GroupSummary) else Path(group.clip.uri).name
    return [
        Place(run=run, step=one.step, prompt_id=one.prompt_id, mean_reward=mean_reward(one))
        for run, groups in runs
        for one in groups
        if (one.query, one.video) == (group.query, video)
    ][:MOST_ELSEWHERE]


class Token(BaseModel):
    """One token of an answer."""

    text: str
    logprob: float | None


class AnswerView(BaseModel):
    """One answer as the page shows it."""

    number: int
    is_injected: bool
    text: str
    tokens: list[Token]
    spans: list[Span]
    marks_s: list[float]
    reward: float | None
    parts: dict[str, float]
    advantage: float | None
    lag: int | None
    """Versions behind the step that trained on it."""
    finish_reason: str
    fate: str
    """What the loss did with it, in words."""


class GroupView(BaseModel):
    """One group as the page shows it."""

    run: str
    step: int
    prompt_id: str
    row_id: str
    epoch: int
    mode: str
    strategy: str
    query: str
    video: str
    """Its name alone."""
    path: str
    window_s: Window | None
    """Part of the video that the row asks about; all times below count from its start."""
    duration_s: float
    frame_times_s: list[float]
    truth: list[Span]
    truth_marks_s: list[float]
    replica: str
    seconds: dict[str, float]
    prompt_tokens: int
    num_frames: int
    answers: list[AnswerView]
    beats: str
    """Who earned most, in words."""


def shown(group: KeptGroup, *, run: str) -> GroupView:
    """A group in full."""
    target = group.target
    spans: list[Span] = []
    marks: list[float] = []
    if isinstance(target, SpansTarget):
        spans = list(target.spans)
    elif isinstance(target, HighlightsTarget):
        marks = [highlight.time_s for highlight in target.highlights]
    else:
        spans = list(read_spans(target.text).used)
    answers = [_answer(n, answer, group) for n, answer in enumerate(group.answers, 1)]
    return GroupView(
        run=run,
        step=group.step,
        prompt_id=group.prompt_id,
        row_id=group.row_id,
        epoch=group.epoch,
        mode=group.mode,
        strategy=group.strategy,
        query=group.query,
        video=Path(group.clip.uri).name,
        path=group.clip.uri,
        window_s=group.clip.window_s,
        duration_s=group.clip.duration_s,
        frame_times_s=list(group.clip.frame_times_s),
        truth=spans,
        truth_marks_s=marks,
        replica=group.replica,
        seconds=group.timings.model_dump(),
        prompt_tokens=group.prompt_tokens,
        num_frames=len(group.clip.frame_indices),
        answers=answers,
        beats=_beats(group),
    )


def _answer(number: int, answer: KeptAnswer, group: KeptGroup) -> AnswerView:
    oldest = min((span.version for span in answer.versions), default=None)
    logprobs: Sequence[float | None] = answer.logprobs or [None] * len(answer.tokens)
    pairs = list(zip(answer.tokens, logprobs, strict=True))[:MOST_TOKENS]
    return AnswerView(
        number=number,
        is_injected=answer.provenance == "injected",
        text=answer.text,
        tokens=[Token(text=text, logprob=logprob) for text, logprob in pairs],
        spans=list(answer.spans),
        marks_s=list(answer.marks_s),
        reward=answer.reward,
        parts=answer.verdict.parts if isinstance(answer.verdict, Scored) else {},
        advantage=answer.advantage,
        lag=None if oldest is None else group.step - 1 - oldest,
        finish_reason=answer.finish_reason,
        fate=" ".join(_fate(answer, group)),
    )


def _fate(answer: KeptAnswer, group: KeptGroup) -> Iterator[str]:
    """What the loss did with an answer."""
    advantage, injected = answer.advantage, answer.provenance == "injected"
    if advantage is None:
        yield f"Not trained on: {_why_not(answer, group)}."
        return
    if abs(advantage) <= NOTHING:
        yield "Advantage 0: it moved nothing, its tokens only count in the denominator."
        return
    direction = "more" if advantage > 0 else "less"
    yield f"Made {direction} likely, each token with weight {advantage:+.2f}."
    if injected:
        yield "Its ratio is 1 by definition: the policy did not sample it, so nothing is clipped."


def _why_not(answer: KeptAnswer, group: KeptGroup) -> str:
    if isinstance(answer.verdict, Unscored):
        return f"without a verdict ({answer.verdict.reason})"
    if answer.finish_reason == "abort":
        return "the engine cut it short"
    if group.strategy == "sft" and answer.provenance == "policy":
        return "strategy sft trains on the injected answer alone"
    if answer.finish_reason == "length":
        return "it ran out of tokens (learner.advantage.truncated)"
    scored = sum(one.reward is not None for one in group.answers)
    if scored < 2:
        return "fewer than two answers have a verdict"
    return "all answers of its group tie (learner.advantage.zero_variance)"


def _beats(group: KeptGroup) -> str:
    rewards = [
        (answer.reward, number)
        for number, answer in enumerate(group.answers)
        if answer.reward is not None
    ]
    if not rewards:
        return "No answer has a verdict."
    best, index = max(rewards)
    ties = sum(reward >= best - NOTHING for reward, _ in rewards)
    if ties == len(rewards) and ties > 1:
        return "All answers earned the same."
    if group.answers[index].provenance == "injected" and ties == 1:
        return "The injected truth beat every answer."
    if any(answer.provenance == "injected" for answer in group.answers):
        return f"Answer {index + 1} earned most, at least as much as the injected truth."
    return f"Answer {index + 1} earned most."
