"""A scoring request → its response, as dictionaries that are JSON (pydantic checks the way in).

Bad input is refused before any work. Dictionaries instead of models on the way out keep a batch of
512 responses below twice the pure scorer's time (docs/bench/reward.json).
"""

import time
from collections.abc import Mapping
from typing import Any

from common.answers.reading import PARSERS
from common.config import Reward
from common.rest.problems import FieldError, Problem
from common.rest.reward_api import InjectionRequest, ScoreItem, ScoreRequest
from services.reward.injection import Injection, inject
from services.reward.metrics import Metrics
from services.reward.registry import GroundTruthQuery, ScoreAll, Task, VerdictJson
from services.reward.scorer_process import ScorerFailed
from services.reward.scorers.targets import TargetError, UnrenderableTarget
from services.reward.shaping import injected_shaper


class Judge:
    """Scores requests with a set of tasks, inside the limits of `[reward]`."""

    def __init__(self, tasks: Mapping[str, Task], settings: Reward, metrics: Metrics) -> None:
        self._tasks = tasks
        self._settings = settings
        self._metrics = metrics

    def score(self, request: ScoreRequest) -> dict[str, Any]:
        """The ScoreResponse of a request.

        Raises:
            Problem: 413 or 422 for what cannot be scored, names the field; 503 when too many
                requests wait for a third-party scorer.
        """
        deadline = time.monotonic() + self._settings.request_timeout_s
        self._check_sizes(request)
        self._check_parser(request.parser)
        bound = [
            self._bind(index, item, request, deadline) for index, item in enumerate(request.items)
        ]
        return {
            "items": [
                self._score_item(item, request, score_all, deadline)
                for item, score_all in zip(request.items, bound, strict=True)
            ]
        }

    def injection(self, request: InjectionRequest) -> dict[str, Any]:
        """The InjectionResponse of a request.

        Raises:
            Problem: as `score`.
        """
        deadline = time.monotonic() + self._settings.request_timeout_s
        if request.rollout is not None:
            self._check_length(request.rollout, field="rollout")
        self._check_parser(request.parser)
        task = self._task(request.task, field="task")
        query = GroundTruthQuery(
            request.task,
            request.mode,
            request.target,
            request.duration_s,
            request.parser,
            request.decimals,
        )
        try:
            injected = _render(task, query, deadline)
        except TargetError as error:
            raise refusal(422, error.field, str(error)) from error
        if injected.text is not None:
            rollouts = () if request.rollout is None else (request.rollout,)
            injected = inject(
                injected.text,
                mode=request.mode,
                option=request.think_injection,
                rollouts=rollouts,
            )
        self._metrics.count_injection(request.task, injected=injected.text is not None)
        return injected._asdict()

    def _bind(
        self, index: int, item: ScoreItem, request: ScoreRequest, deadline: float
    ) -> ScoreAll:
        task = self._task(item.task, field=f"items.{index}.task")
        try:
            return task.bind(item, request, deadline=deadline)
        except TargetError as error:
            raise refusal(422, f"items.{index}.{error.field}", str(error)) from error

    def _score_item(
        self, item: ScoreItem, request: ScoreRequest, score_all: ScoreAll, deadline: float
    ) -> dict[str, Any]:
        verdicts = score_all(item.responses)
        self._metrics.count_verdicts(item.task, verdicts)
        if not (request.injection and item.injection):
            return {"verdicts": verdicts, "injected": None}
        injected = self._inject(item, request, verdicts, deadline)
        self._metrics.count_injection(item.task, injected=injected.text is not None)
        if injected.text is None:
            return {"verdicts": verdicts, "injected": {"text": None, "reason": injected.reason}}
        (verdict,) = score_all((injected.text,))
        if verdict["kind"] == "scored":
            verdict["reward"] = injected_shaper(request.shaping)(verdict["reward"])
        return {"verdicts": verdicts, "injected": {"text": injected.text, "verdict": verdict}}

    def _inject(
        self, item: ScoreItem, request: ScoreRequest, verdicts: list[VerdictJson], deadline: float
    ) -> Injection:
        query = GroundTruthQuery(
            item.task, item.mode, item.target, item.duration_s, request.parser, request.decimals
        )
        rendered = _render(self._tasks[item.task], query, deadline)
        if rendered.text is None:
            return rendered
        scored = [
            (verdict["reward"], response)
            for verdict, response in zip(verdicts, item.responses, strict=True)
            if verdict["kind"] == "scored"
        ]
        best_first = [text for _, text in sorted(scored, key=lambda pair: -pair[0])]
        return inject(
            rendered.text, mode=item.mode, option=request.think_injection, rollouts=best_first
        )

    def _task(self, name: str, *, field: str) -> Task:
        task = self._tasks.get(name)
        if task is None:
            raise refusal(422, field, f"found {name!r}, wanted one of {', '.join(self._tasks)}")
        return task

    def _check_parser(self, parser: str) -> None:
        if parser not in PARSERS:
            detail = f"found {parser!r}, wanted one of {', '.join(PARSERS)}"
            raise refusal(422, "parser", detail)

    def _check_sizes(self, request: ScoreRequest) -> None:
        limits = self._settings
        if len(request.items) > limits.max_items:
            raise refusal(
                413, "items", f"found {len(request.items)}, wanted at most {limits.max_items} items"
            )
        count = 0
        for index, item in enumerate(request.items):
            count += len(item.responses)
            field = f"items.{index}.responses"
            if count > limits.max_responses:
                raise refusal(
                    413, field, f"wanted at most {limits.max_responses} responses in one request"
                )
            for position, response in enumerate(item.responses):
                self._check_length(response, field=f"{field}.{position}")

    def _check_length(self, response: str, *, field: str) -> None:
        most = self._settings.max_response_chars
        if len(response) > most:
            raise refusal(413, field, f"found {len(response)} characters, wanted at most {most}")


def _render(task: Task, query: GroundTruthQuery, deadline: float) -> Injection:
    try:
        text = task.answer(query, deadline=deadline)
    except (ScorerFailed, UnrenderableTarget) as error:
        return Injection(None, str(error))
    if text is None:
        return Injection(None, "the task renders no answers")
    return Injection(text)


def refusal(status: int, field: str, detail: str) -> Problem:
    """A request that is refused for one of its fields."""
    return Problem(status, f"{field}: {detail}", errors=[FieldError(field, detail)])
