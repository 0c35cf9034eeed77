"""Annotations → the questions of a run: who is asked what about which file.

    annotation file -> Questions(asked, missing, unusable) -> [jobs.evaluation.runner]

Nothing is dropped silently: a query whose video is not there, and an annotation that cannot be
asked or scored, are listed with their reasons.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from common.errors import ConfigError
from common.messages import ChatMessage, Mode, SpansTarget, Window
from common.prompts import EVALUATION_PROMPTS, HIGHLIGHTS, chat_messages
from common.rows import CLIP_END_TOLERANCE_S, Row, UnusableRowError, window_of
from common.video.names import with_nearest
from jobs.data.annotations.reading import read
from jobs.data.annotations.records import Annotation, BadRecord, clean_query
from jobs.evaluation.scoring.matching import Question
from jobs.evaluation.scoring.moment_detr import positive_clips
from jobs.evaluation.scoring.predictions import Task
from jobs.evaluation.scoring.qvhighlights import truth_of
from jobs.evaluation.scoring.score import question_of

SHOWN = 8
"""Names in a message."""
PROMPTS: Mapping[Task, Mapping[str, Mapping[Mode, str]]] = MappingProxyType(
    {"moments": EVALUATION_PROMPTS, "highlights": MappingProxyType({"ours": HIGHLIGHTS})}
)
"""Words of a question by task, `--protocol-prompt` and mode; highlights are asked for in one way:
the paper's, with an example that is nobody's answer (SPEC A5)."""
OWN_PROMPTS = frozenset({"ours", "published"})
"""Prompts under which a trainer row is asked with its own instruction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One query whose video is there."""

    question: Question
    problem: str | None
    """Instruction of the annotation itself, `<video>` included."""
    video: Path
    """Absolute path of the file; it may be gone, and in the clip cache."""
    longest_first: tuple[float, float, str]
    """Sorts by falling duration, then by falling file size; queries of one clip stay together."""

    def messages(self, prompt: str, mode: Mode, *, task: Task) -> tuple[ChatMessage, ...]:
        """The chat that asks it.

        Args:
            prompt: one that `PROMPTS` has for the task.
            mode: one the prompt has.
            task: what it is asked for.

        Raises:
            ValueError: neither a query nor a usable instruction.
        """
        if task == "moments" and prompt in OWN_PROMPTS and self.problem is not None:
            row = Row(
                row_id=self.question.id,
                video=self.question.video,
                problem=self.problem,
                query=None,
                target=SpansTarget(spans=self.question.spans),
            )
            return row.messages(mode)
        template = PROMPTS[task][prompt][mode]
        return chat_messages(template.format(query=clean_query(self.question.query)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Everything an annotation file asks."""

    asked: tuple[Asked, ...]
    """In the order of the file."""
    missing: dict[str, int]
    """Queries by video that is not there."""
    unusable: tuple[str, ...]
    """`position: reason` of annotations that cannot be asked or scored."""
    there: Collection[str] = ()
    """Names of the videos that are there, where some are missing."""

    def shard(self, index: int, count: int) -> list[Asked]:
        """The `index`-th of `count` parts, from 1; the queries of a clip stay together."""
        numbers: dict[str, int] = {}
        for one in self.asked:
            numbers.setdefault(one.question.video, len(numbers))
        return [one for one in self.asked if numbers[one.question.video] % count == index - 1]

    def refuse_gaps(self) -> None:
        """Stop before anything is asked if the benchmark would not be whole.

        Raises:
            ConfigError: lists what is missing.
        """
        if self.missing:
            raise ConfigError(
                f"--video-root: found no file for {len(self.missing)} videos of "
                f"{sum(self.missing.values())} queries, wanted all: "
                f"{with_nearest(self.missing, self.there)}; "
                "--allow-missing goes on without them and counts them"
            )
        if self.unusable:
            raise ConfigError(
                f"found {len(self.unusable)} annotations that cannot be used, wanted none: "
                f"{_some(self.unusable)}; --allow-missing goes on without them and counts them"
            )


def find_questions(
    path: Path,
    *,
    find: Callable[[str], Path | None],
    task: Task = "moments",
    limit: int | None = None,
    there: Callable[[], Collection[str]] = tuple,
) -> Questions:
    """The questions of an annotation file.

    Args:
        path: of any schema of `jobs.data.annotations`.
        find: video as the annotation names it → file, or None.
        task: what is asked for; highlights need ratings that can be scored.
        limit: only the first queries whose videos are there.
        there: names of all videos there are; asked when some are missing.

    Raises:
        ConfigError: an id stands twice, or there is no annotation with a truth at all.
    """
    files: dict[str, Path | None] = {}
    asked: list[Asked] = []
    missing: Counter[str] = Counter()
    unusable: list[str] = []
    for usable in _usable(path, task):
        if isinstance(usable, str):
            unusable.append(usable)
            continue
        annotation, question = usable
        if question.video not in files:
            files[question.video] = find(question.video)
        file = files[question.video]
        if file is None:
            missing[question.video] += 1
        elif limit is None or len(asked) < limit:
            asked.append(_asked(annotation, question, file))
    found = Questions(
        asked=tuple(asked),
        missing=dict(missing),
        unusable=tuple(unusable),
        there=there() if missing else (),
    )
    _refuse_nothing(path, found)
    return found


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` with 1 <= i <= n.

    Raises:
        ConfigError: anything else.
    """
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return int(index), int(count)
    raise ConfigError(f"--shard: found {text!r}, wanted i/n with 1 <= i <= n, for example 1/4")


def _usable(path: Path, task: Task) -> Iterator[tuple[Annotation, Question] | str]:
    """Each annotation as a question, or why it cannot be one."""
    positions: dict[str, str] = {}
    for record in read(path):
        if isinstance(record, BadRecord):
            yield f"{record.position}: {record.reason}: {record.detail}"
            continue
        if problem := _problem_of(record):
            yield f"{record.position}: {problem}"
            continue
        question = question_of(record, path=path)
        if task == "highlights" and (problem := _rating_problem(question)):
            yield f"{record.position}: {problem}"
            continue
        if question.id in positions:
            raise ConfigError(
                f"{path}: found the id {question.id!r} at {positions[question.id]} and at "
                f"{record.position}, wanted every id once"
            )
        positions[question.id] = record.position
        yield record, question


def _problem_of(annotation: Annotation) -> str | None:
    """Why an annotation cannot be asked or scored; None if it can."""
    if not annotation.spans:
        return "no true span"
    if not all(math.isfinite(time_s) for span in annotation.spans for time_s in span):
        return f"the true spans {annotation.spans} are no numbers"
    if not all(0 <= start_s <= end_s for start_s, end_s in annotation.spans):
        return f"the true spans {annotation.spans} are not 0 <= start <= end"
    try:
        _window(annotation)
    except UnusableRowError as error:
        return str(error)
    if annotation.query is None and annotation.problem is None:
        return "neither query nor problem"
    return None


def _rating_problem(question: Question) -> str | None:
    """Why an answer about highlights could not be scored; None if it can."""
    if not question.clip_ids:
        return "no clip is rated"
    if question.duration_s is None or not math.isfinite(question.duration_s):
        return f"the duration {question.duration_s} counts no clips"
    try:
        positive_clips(truth_of(question), qid=question.id)
    except ValueError as error:
        return str(error)
    return None


def _window(annotation: Annotation) -> Window | None:
    return None if annotation.window is None else window_of(*annotation.window)


def _duration_s(annotation: Annotation, window: Window | None) -> float | None:
    """As annotated; None, for which the clip's own is used, if that is no length, or the file's."""
    duration_s = annotation.duration_s
    if duration_s is None or not math.isfinite(duration_s):
        return None
    if window is not None and window[1] is not None:
        is_parts = abs(duration_s - (window[1] - window[0])) <= CLIP_END_TOLERANCE_S
        return duration_s if is_parts else None
    return duration_s


def _asked(annotation: Annotation, question: Question, file: Path) -> Asked:
    window = _window(annotation)
    duration_s = _duration_s(annotation, window)
    question = replace(question, duration_s=duration_s, window=window)
    return Asked(
        question=question,
        problem=annotation.problem,
        video=file,
        longest_first=(
            0.0 if duration_s is None else -duration_s,
            -float(file.stat().st_size) if file.exists() else 0.0,
            question.video,
        ),
    )


def _refuse_nothing(path: Path, found: Questions) -> None:
    if found.asked:
        return
    if found.missing:
        raise ConfigError(
            f"--video-root: found no file for any of {len(found.missing)} videos among the "
            f"{len(found.there)} that are there, wanted "
            f"{with_nearest(found.missing, found.there)}"
        )
    raise ConfigError(
        f"{path}: found no annotation that can be asked and scored"
        + (f": {_some(found.unusable)}" if found.unusable else ", wanted at least one")
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
