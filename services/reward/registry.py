"""Tasks by name: built-in scorers and the entry points `tempsamp.scorers` of installed packages.

A task binds an item of a request to a function over its responses, and renders its ground truth as
an answer. Built-in tasks run in this process (they are linear-time and bounded); entry points run
in child processes (`services.reward.scorer_process`). docs/rewards.md shows how to write one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from common.errors import RewardError
from common.messages import Mode, Target
from common.rest.reward_api import ScoreItem, ScoreRequest, ScorerInfo
from services.reward.sandbox import GROUP
from services.reward.scorer_process import ScorerFailed, ScorerPool
from services.reward.scorers import highlight_detection, temporal_grounding
from services.reward.scorers.targets import ScoreOne
from services.reward.shaping import score_shaper

VerdictJson = dict[str, Any]
"""A verdict as it goes out; kinds and fields are those of
`common.rest.reward_api.AnswerVerdict`."""
ScoreAll = Callable[[Sequence[str]], list[VerdictJson]]


@dataclass(frozen=True, slots=True)
class GroundTruthQuery:
    """What is needed to render a target as an answer."""

    task: str
    mode: Mode
    target: Target
    duration_s: float | None
    parser: str
    decimals: int


class Task(Protocol):
    """One row of GET /v1/scorers."""

    @property
    def info(self) -> ScorerInfo:
        """Name, origin and summary."""

    def bind(self, item: ScoreItem, request: ScoreRequest, *, deadline: float) -> ScoreAll:
        """A function over responses of this item; raises TargetError before any work is done."""

    def answer(self, query: GroundTruthQuery, *, deadline: float) -> str | None:
        """The ground truth as an answer, or None; raises TargetError and ScorerFailed."""

    def close(self) -> None:
        """Free what the task holds."""


def unscored(reason: str) -> VerdictJson:
    """Verdict of a broken grader; reasons start with `error:`, `timeout:` or `unavailable:`."""
    return {"kind": "unscored", "reason": reason[:500]}


@dataclass(frozen=True, slots=True)
class BuiltInTask:
    """A scorer of this package."""

    info: ScorerInfo
    bind_one: Callable[[ScoreItem, ScoreRequest], ScoreOne]
    render: Callable[[GroundTruthQuery], str]
    timeout_s: float

    def bind(self, item: ScoreItem, request: ScoreRequest, *, deadline: float) -> ScoreAll:
        score_one = self.bind_one(item, request)
        return lambda responses: [self._guarded(score_one, response) for response in responses]

    def answer(self, query: GroundTruthQuery, *, deadline: float) -> str | None:
        return self.render(query)

    def close(self) -> None:
        """Nothing is held."""

    def _guarded(self, score_one: ScoreOne, response: str) -> VerdictJson:
        """Built-in scorers are linear and need no stopping; the limit is still kept."""
        started = time.perf_counter()
        try:
            verdict = score_one(response)
        except Exception as error:  # noqa: BLE001 - a broken grader is a verdict of its own, never a zero
            return unscored(f"error: {type(error).__name__}: {error}")
        if time.perf_counter() - started > self.timeout_s:
            return unscored(f"timeout: the scorer took over {self.timeout_s} s")
        return verdict


class EntryPointTask:
    """A scorer of an installed package."""

    def __init__(self, entry_point: EntryPoint, *, processes: int, timeout_s: float) -> None:
        self._entry_point = entry_point
        self._pool = ScorerPool(entry_point.name, processes=processes, timeout_s=timeout_s)

    @property
    def info(self) -> ScorerInfo:
        distribution = self._entry_point.dist
        return ScorerInfo(
            task=self._entry_point.name,
            origin="entry point",
            distribution=distribution and f"{distribution.name} {distribution.version}",
            summary=f"shape(reward of {self._entry_point.value})",
            injects=self._pool.injects,
        )

    def bind(self, item: ScoreItem, request: ScoreRequest, *, deadline: float) -> ScoreAll:
        described = {
            **item.model_dump(mode="json", exclude={"responses", "injection"}),
            "parser": request.parser,
            "format": request.format,
        }
        shape = score_shaper(request.shaping)

        def score(responses: Sequence[str]) -> list[VerdictJson]:
            try:
                with self._pool.lend(wait_s=deadline - time.monotonic()) as process:
                    return [
                        _foreign_verdict(process.call, described, response, shape, deadline)
                        for response in responses
                    ]
            except ScorerFailed as error:
                return [unscored(str(error)) for _ in responses]

        return score

    def answer(self, query: GroundTruthQuery, *, deadline: float) -> str | None:
        item = {
            "task": query.task,
            "mode": query.mode,
            "target": query.target.model_dump(mode="json"),
            "duration_s": query.duration_s,
            "decimals": query.decimals,
        }
        with self._pool.lend(wait_s=deadline - time.monotonic()) as process:
            text = process.call({"op": "answer", "item": item})
        return None if text is None else str(text)

    def close(self) -> None:
        self._pool.close()


def _foreign_verdict(
    call: Callable[[dict[str, Any]], Any],
    item: dict[str, Any],
    response: str,
    shape: Callable[[float], float],
    deadline: float,
) -> VerdictJson:
    if time.monotonic() > deadline:
        return unscored("timeout: the request's time was used up by earlier responses")
    try:
        result = call({"op": "score", "item": item, "response": response})
        score, shaped = result["reward"], shape(result["reward"])
    except (ScorerFailed, ArithmeticError, ValueError) as error:
        return unscored(str(error) if isinstance(error, ScorerFailed) else f"error: {error}")
    return {
        "kind": "scored",
        "reward": shaped,
        "parts": {**result["parts"], "score": score, "score_shaped": shaped},
        "parsed": result["parsed"] if isinstance(result["parsed"], dict) else None,
    }


def built_in(timeout_s: float) -> dict[str, Task]:
    """The tasks of this package."""
    grounding = BuiltInTask(
        info=_info("temporal_grounding", temporal_grounding.SUMMARY),
        bind_one=temporal_grounding.bind,
        render=lambda query: temporal_grounding.answer(
            query.target,
            duration_s=query.duration_s,
            parser=query.parser,
            decimals=query.decimals,
            mode=query.mode,
        ),
        timeout_s=timeout_s,
    )
    highlights = BuiltInTask(
        info=_info("highlight_detection", highlight_detection.SUMMARY),
        bind_one=highlight_detection.bind,
        render=lambda query: highlight_detection.answer(
            query.target, duration_s=query.duration_s, decimals=query.decimals
        ),
        timeout_s=timeout_s,
    )
    return {task.info.task: task for task in (grounding, highlights)}


def discover(*, timeout_s: float, processes: int) -> Mapping[str, Task]:
    """Built-in tasks and those of installed packages.

    Raises:
        RewardError: two scorers have the same name; names the packages.
    """
    tasks = built_in(timeout_s)
    for entry_point in sorted(entry_points(group=GROUP), key=lambda found: found.name):
        if entry_point.name in tasks:
            raise RewardError(
                f"task {entry_point.name!r}: defined by {entry_point.value} and by "
                f"{tasks[entry_point.name].info.distribution or 'this package'}: "
                "uninstall one or rename its entry point"
            )
        tasks[entry_point.name] = EntryPointTask(
            entry_point, processes=processes, timeout_s=timeout_s
        )
    return tasks


def _info(task: str, summary: str) -> ScorerInfo:
    return ScorerInfo(task=task, origin="built-in", summary=summary, injects=True)
