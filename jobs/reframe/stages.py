"""The two stages of one run: videos → questions to replicas → boxes, and what became of each video.

    Wanted -> [highlights?] -> segments of frames -> [subject? at keyframes] -> boxes -> Submitted

Each stage is one queue that all replicas pull from, its questions of all videos together. Whatever
goes wrong with a video is counted by kind and costs that video, never its line. Neighbours:
`jobs.asking.replicas` carries, `.reading`, `.scales` and `.tracking` understand, `.journal` keeps.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import VideoError
from common.messages import ClipRef, GenerateRequest, Sampling
from common.prompts import chat_messages
from common.video.sampling import VideoSampling
from jobs.asking.refusals import Refused
from jobs.asking.replicas import Ask, Fleet
from jobs.reframe.center import every_frame
from jobs.reframe.crop import Box, Point, Size
from jobs.reframe.index import Wanted
from jobs.reframe.journal import Journal, Outcome, Reply, Stage, VideoEnd, question_digest
from jobs.reframe.reading import Read, read_point, read_segments
from jobs.reframe.scales import places
from jobs.reframe.submission import Submitted, of
from jobs.reframe.tracking import EVERY, boxes, frame_segments, keyframes, outliers
from jobs.reframe.videos import Film, MissingVideoError, find, open_film

if TYPE_CHECKING:
    from common.video.index import VideoHeader

ONE_HIGHLIGHT = (
    "<video>Find the single part of this video that is most worth showing as its highlight. "
    "Give its start and its end in seconds. Answer with JSON alone, in this form: "
    '{"segments": [[3.0, 8.5]]}'
)
SEVERAL_HIGHLIGHTS = (
    "<video>Find the parts of this video that are most worth showing as its highlights, at most "
    "%d, the best one first. Give the start and the end of each in seconds. Answer with JSON "
    'alone, in this form: {"segments": [[3.0, 8.5], [21.0, 26.5]]}'
)
SUBJECT = (
    "<video>This is one frame of a video. Where is the centre of its main subject, the one that a "
    "viewer follows? Give x from left to right and y from top to bottom, each on a scale from 0 to "
    '1000. "size" is the width and the height of the frame on the scale that you use. Answer with '
    'JSON alone, in this form: {"center": [412, 637], "size": [1000, 1000]}'
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a video is asked about, and what is made of the replies."""

    video: VideoSampling
    """Which frames stand for a video, and how large a keyframe is."""
    segments: int = 1
    """Most highlights of a video."""
    every: int = EVERY
    """Frames between keyframes."""
    smooth_px: int | None = None
    """Most pixels that a box moves from frame to frame; None: any."""
    max_tokens: int = 256
    """Longest reply."""

    @property
    def highlights_prompt(self) -> str:
        """Of the first stage."""
        return ONE_HIGHLIGHT if self.segments == 1 else SEVERAL_HIGHLIGHTS % self.segments


@dataclass(kw_only=True)
class Case:
    """One video, and what is known of it so far."""

    wanted: Wanted
    header: "VideoHeader | VideoError"
    film: Film | None = None
    highlights: str | None = None
    """The reply of the first stage."""
    segments: list[tuple[int, int]] = field(default_factory=list)
    """Frames [first, end), apart and ascending."""
    subjects: dict[int, str] = field(default_factory=dict)
    """Replies of the second stage by frame."""
    faults: Counter[str] = field(default_factory=Counter)
    error: str | None = None

    def fault(self, kind: str, error: object = None) -> None:
        """Count one, and keep the first message."""
        self.faults[kind] += 1
        if self.error is None and error is not None:
            self.error = str(error)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one video; of the first stage without a frame."""

    case: Case
    frame: int | None = None

    @property
    def stage(self) -> Stage:
        """Which of the two."""
        return "highlights" if self.frame is None else "subject"


class TwoStages:
    """Asks about videos and keeps what was answered."""

    def __init__(
        self,
        wanted: Iterable[Wanted],
        *,
        video_dir: Path,
        headers: "Mapping[str, VideoHeader | VideoError]",
        settings: Settings,
        journal: Journal,
        model: str,
        on_done: Callable[[Question], None],
    ) -> None:
        """Nothing is asked yet.

        Args:
            wanted: the videos, in the order of their lines.
            video_dir: where they lie.
            headers: of all of them.
            settings: of the run.
            journal: what is known already, and where replies go.
            model: names the weights that answer.
            on_done: told about every question that needs no more asking.
        """
        self.cases = [Case(wanted=one, header=headers[one.video_id]) for one in wanted]
        self._video_dir = video_dir
        self._settings = settings
        self._journal = journal
        self._model = model
        self._on_done = on_done

    async def ask_highlights(self, fleet: Fleet) -> None:
        """The first stage.

        Raises:
            EngineError: no replica can be reached, or other weights answered.
        """
        await self._ask([Question(case=case) for case in self.cases], fleet=fleet)

    def subject_questions(self) -> list[Question]:
        """The second stage's, once the first one is over."""
        questions = []
        for case in self.cases:
            if case.film is None or case.highlights is None:
                continue
            case.segments = _segments(case, case.film, limit=self._settings.segments)
            for first, end in case.segments:
                frames = keyframes(first, end, every=self._settings.every)
                questions += [Question(case=case, frame=frame) for frame in frames]
        return questions

    async def ask_subjects(self, questions: Sequence[Question], *, fleet: Fleet) -> None:
        """The second stage.

        Raises:
            EngineError: as `ask_highlights`.
        """
        await self._ask(questions, fleet=fleet)

    def result(self, *, outage: str | None = None) -> tuple[list[Submitted], list[VideoEnd]]:
        """A line for every video, and what became of it.

        Args:
            outage: why asking ended before its end.
        """
        lines, ends = [], []
        for case in self.cases:
            if outage is not None and _is_unanswered(case, every=self._settings.every):
                case.fault("engine", outage)
            found, outcome = _boxes(case, settings=self._settings)
            lines.append(of(case.wanted, boxes=found))
            ends.append(
                VideoEnd(
                    video_id=case.wanted.video_id,
                    outcome=outcome,
                    faults=dict(sorted(case.faults.items())),
                    error=case.error,
                )
            )
        return lines, ends

    async def _ask(self, questions: Sequence[Question], *, fleet: Fleet) -> None:
        await fleet.work(
            questions,
            do=self._do,
            give_up=self._give_up,
            pile_of=lambda question: question.case.wanted.video_id,
        )

    async def _do(self, question: Question, ask: Ask) -> None:
        case = question.case
        if case.film is None and not await asyncio.to_thread(self._open, case):
            self._on_done(question)
            return
        request = self._request(question)
        digest = question_digest(request, model=self._model)
        text = self._journal.text(digest)
        if text is None:
            try:
                text = (await ask(request)).answers[0].text
            except (Refused, VideoError) as error:
                case.fault("refused" if isinstance(error, Refused) else "unusable video", error)
                self._on_done(question)
                return
            self._journal.add(
                Reply(
                    video_id=case.wanted.video_id,
                    stage=question.stage,
                    frame=question.frame,
                    question=digest,
                    text=text,
                )
            )
        if question.frame is None:
            case.highlights = text
        else:
            case.subjects[question.frame] = text
        self._on_done(question)

    def _open(self, case: Case) -> bool:
        """Whether the video can be asked about."""
        try:
            path = find(self._video_dir, case.wanted.video_id)
            case.film = open_film(path, sampling=self._settings.video)
        except MissingVideoError as error:
            case.fault("missing video", error)
        except VideoError as error:
            case.fault("unusable video", error)
        return case.film is not None

    def _give_up(self, question: Question, error: str) -> None:
        question.case.fault("engine", error)
        self._on_done(question)

    def _request(self, question: Question) -> GenerateRequest:
        film = question.case.film
        assert film is not None
        if question.frame is None:
            return self._greedy(self._settings.highlights_prompt, clip=film.whole)
        return self._greedy(SUBJECT, clip=film.frame(question.frame))

    def _greedy(self, prompt: str, *, clip: ClipRef) -> GenerateRequest:
        return GenerateRequest(
            clip=clip,
            messages=chat_messages(prompt),
            sampling=Sampling(temperature=0.0, max_tokens=self._settings.max_tokens),
        )


def _segments(case: Case, film: Film, *, limit: int) -> list[tuple[int, int]]:
    """Frames of the highlights that a reply names."""
    assert case.highlights is not None
    read = read_segments(case.highlights)
    if read is None:
        case.fault("no segments in the reply", case.highlights[:200])
        return []
    case.faults.update(_known(read.notes))
    found = frame_segments(
        [(film.frame_at(start), film.frame_at(end)) for start, end in read.spans],
        total=film.total_frames,
        limit=limit,
    )
    case.faults.update(found.faults)
    if not read.spans:
        case.fault("no highlight")
    return found.segments


def _is_unanswered(case: Case, *, every: int) -> bool:
    """Whether a question of it that nothing speaks against has no reply."""
    if isinstance(case.header, VideoError):
        return False
    if case.highlights is None:
        return not case.faults
    frames = {f for first, end in case.segments for f in keyframes(first, end, every=every)}
    return not frames <= case.subjects.keys()


def _known(notes: Sequence[str]) -> list[str]:
    return [f"{note} in a reply" for note in notes]


def _boxes(case: Case, *, settings: Settings) -> tuple[dict[int, Box], Outcome]:
    """Boxes by frame; the fall-back where nothing better is known."""
    if isinstance(case.header, VideoError):
        if not case.faults:
            case.fault("unusable video", case.header)
        return {}, "empty"
    if case.film is None or not case.segments:
        return every_frame(case.header, ratio=case.wanted.ratio), "centred"
    followed = False
    found: dict[int, Box] = {}
    for first, end in case.segments:
        frames = keyframes(first, end, every=settings.every)
        seen = _places(case, case.film, frames)
        wrong = outliers(seen, step_s=settings.every / case.film.index.source_fps)
        case.faults.update({"slip of a point": len(wrong)} if wrong else {})
        followed = followed or any(place is not None for place in seen)
        found |= boxes(
            frames,
            seen,
            wrong=wrong,
            size=case.film.size,
            ratio=case.wanted.ratio,
            smooth_px=settings.smooth_px,
        )
    return found, "followed" if followed else "middle"


def _places(case: Case, film: Film, frames: Sequence[int]) -> list[Point | None]:
    """Of the subject at the keyframes of a segment."""
    replies: list[Read | None] = []
    for frame in frames:
        text = case.subjects.get(frame)
        read = None if text is None else read_point(text)
        if text is not None and read is None:
            case.fault("no point in a reply", text[:200])
        if read is not None:
            case.faults.update(_known(read.notes))
        replies.append(read)
    height_px, width_px = film.frame(frames[0]).frame_hw
    found = places(replies, sent=Size(width_px, height_px), source=film.size)
    for place, read in zip(found, replies, strict=True):
        if place is None and read is not None:
            case.fault("point outside the frame")
    return found
