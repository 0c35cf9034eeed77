"""Prediction files of four projects → `Prediction`s, checked: `read_predictions(path)`.

Read are our `predictions.jsonl` (`PredictionRecord`), moment_detr's JSONL or list (`qid`,
`pred_relevant_windows`, `pred_saliency_scores`), TimeLens' object (`video>>>query>>>span` →
`timestamps`, `answers`) and VTG-LLM's object (id → `timestamp`, `query`, `vid`). The file itself
says which it is. `jobs.evaluation.scoring.matching` finds the annotation of each.

A file that says two things about one query, or holds NaN, is refused with the place. The last line
of a JSONL that was cut while being written is dropped and counted. Gzip is known by its first
bytes.
"""

import ast
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from common.answers.presets import read_timelens
from common.answers.spans import Span
from common.messages import Window
from jobs.asking.answers import Ending

Format = Literal["tempsamp", "moment_detr", "timelens", "vtg_llm"]
Task = Literal["moments", "highlights"]
"""What a query is asked for: when it happens, or which clips stand out."""
AnswerMode = Literal["answer", "think", "mixed_selected", "mixed_oracle"]
FailureKind = Literal["video", "engine"]

KEY_SEPARATOR = ">>>"
"""Between video, query and span in TimeLens' keys."""
GZIP_MAGIC = b"\x1f\x8b"
WANTED = (
    "wanted predictions of tempsamp (id, video, text), moment_detr (qid), TimeLens "
    "(video>>>query>>>span) or VTG-LLM (id: timestamp)"
)


class PredictionRecord(BaseModel):
    """One line of our `predictions.jsonl`: a query, its truth and the answer, or why none came."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str
    """Of the annotation; unique in a file."""
    video: str
    query: str
    gt: Annotated[tuple[Span, ...], Field(min_length=1)]
    """True spans in seconds, as annotated."""
    gt_ratings: Mapping[int, tuple[float, ...]] | None = None
    """True ratings, 0 to 4, by clip of two seconds; None unless highlights were asked for."""
    duration_s: float | None = None
    window_s: Window | None = None
    """Part of the file that was asked about, from which all times count; None is all of it."""
    mode: AnswerMode
    text: str | None = None
    """The answer as generated; None when `failure` says why there is none."""
    think_text: str | None = None
    """The thought before it, where the engine returns it apart; else it is part of `text`."""
    ending: Ending | None = None
    """How the answer ended; None: by itself."""
    answer_logprob: Annotated[float, Field(le=0)] | None = None
    """Mean over the tokens inside the answer block, nats."""
    samples: tuple[str, ...] = ()
    """Further answers to the same question at temperature 1."""
    samples_tokens: int | None = None
    """Tokens of all samples together, stop tokens included."""
    samples_surprise_nats: float | None = None
    """Sum of -log p over these tokens."""
    prompt_tokens: int | None = None
    """Of all requests for this query, as the server counts them."""
    completion_tokens: int | None = None
    """Of all answers to this query."""
    failure: FailureKind | None = None
    error: str | None = None
    """What the failure said."""
    fingerprint: str
    """Of model, prompt, sampling and clip parameters; one run has one."""

    @model_validator(mode="after")
    def _is_answer_or_failure(self) -> "PredictionRecord":
        if (self.text is None) == (self.failure is None):
            raise ValueError("wanted exactly one of text and failure")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What any of the formats says about one query."""

    key: str
    """How the file names it."""
    id: str | None = None
    """Of the annotation, where the file uses such ids."""
    video: str | None = None
    query: str | None = None
    truth: tuple[Span, ...] = ()
    """True spans, where the file repeats them."""
    ratings: Mapping[int, tuple[float, ...]] | None = None
    """True ratings by clip; None unless the file says that highlights were asked for."""
    duration_s: float | None = None
    window: Window | None = None
    """Part of the file that was asked about, where the file says so."""
    text: str | None = None
    spans: tuple[Span, ...] | None = None
    """Spans that the file gives ready-made; None where only the text says."""
    windows: tuple[tuple[float, float, float], ...] | None = None
    """Ranked `(start_s, end_s, confidence)` of moment_detr."""
    saliency: tuple[float, ...] | None = None
    """Score of each clip, of moment_detr."""
    failure: FailureKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionFile:
    """A file that was read."""

    format: Format
    predictions: tuple[Prediction, ...]
    truncated_lines: int
    """1 if the last line was cut, and dropped."""
    mode: AnswerMode | None = None
    """Of the first record, as one file has one mode; None when the format does not say."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _MomentDetr(_Record):
    qid: int | str
    query: str | None = None
    vid: str | None = None
    pred_relevant_windows: (
        list[Annotated[list[float], Field(min_length=2, max_length=3)]] | None
    ) = None
    pred_saliency_scores: list[float] | None = None


class _TimeLens(_Record):
    timestamps: list[Span] | None = None
    answers: str | None = None


class _VtgLlm(_Record):
    timestamp: list[Span]
    query: str | None = None
    vid: str | None = None


def read_predictions(path: Path) -> PredictionFile:
    """Every prediction of a file, gzipped or not, in its order.

    Raises:
        ValueError: no file there, not a file of the four formats, a value of a wrong type, NaN, or
            a query that is answered twice; names the file and the line or key.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        there = "a folder" if path.is_dir() else "no file"
        raise ValueError(f"{path}: found {there}, wanted a file of predictions")
    try:
        return _read(_text(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _text(content: bytes) -> str:
    try:
        plain = gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"found broken gzip, wanted the whole file: {error}") from error
    try:
        return plain.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"found no UTF-8 at byte {error.start}, {WANTED}") from error


def _read(content: str) -> PredictionFile:
    if not content.strip():
        raise ValueError(f"found nothing, {WANTED}")
    first_line = content.lstrip().partition("\n")[0]
    head = _json_or_none(first_line)
    if isinstance(head, dict) and "qid" in head:
        return _read_lines(content, name="moment_detr", read=_moment_detr_line)
    if isinstance(head, dict) and {"id", "video"} <= head.keys():
        lines = _read_lines(content, name="tempsamp", read=_our_line)
        # No record: the only line was cut.
        return replace(lines, mode=head.get("mode")) if lines.predictions else lines
    document = _json(content)
    if isinstance(document, list):
        return _file("moment_detr", (_moment_detr(record) for record in document))
    entries = document if isinstance(document, dict) else {}
    if entries and all(KEY_SEPARATOR in key for key in entries):
        return _file("timelens", (_timelens(key, entry) for key, entry in entries.items()))
    if entries and all(isinstance(e, dict) and "timestamp" in e for e in entries.values()):
        return _file("vtg_llm", (_vtg_llm(key, entry) for key, entry in entries.items()))
    raise ValueError(f"found {first_line[:80]!r}, {WANTED}")


def _file(
    name: Format, predictions: Iterable[Prediction], *, truncated_lines: int = 0
) -> PredictionFile:
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        if prediction.key in found:
            raise ValueError(f"found {prediction.key!r} twice, wanted one prediction for a query")
        found[prediction.key] = prediction
    return PredictionFile(
        format=name, predictions=tuple(found.values()), truncated_lines=truncated_lines
    )


def _read_lines(content: str, *, name: Format, read: Callable[[str], Prediction]) -> PredictionFile:
    lines = content.split("\n")
    cut = bool(lines[-1].strip()) and _json_or_none(lines[-1]) is None
    if cut:
        lines.pop()
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    return _file(name, _each_line(numbered, read=read), truncated_lines=int(cut))


def _each_line(
    numbered: Iterable[tuple[int, str]], *, read: Callable[[str], Prediction]
) -> Iterator[Prediction]:
    for number, line in numbered:
        try:
            yield read(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {_said(error)}") from error


def _our_line(line: str) -> Prediction:
    record = PredictionRecord.model_validate_json(line)
    return Prediction(
        key=record.id,
        id=record.id,
        video=record.video,
        query=record.query,
        truth=record.gt,
        ratings=record.gt_ratings,
        duration_s=record.duration_s,
        window=record.window_s,
        text=record.text,
        failure=record.failure,
    )


def _moment_detr_line(line: str) -> Prediction:
    return _from_moment_detr(_MomentDetr.model_validate_json(line))


def _moment_detr(record: object) -> Prediction:
    try:
        return _from_moment_detr(_MomentDetr.model_validate(record))
    except ValidationError as error:
        raise ValueError(f"{str(record)[:80]}: {_said(error)}") from error


def _from_moment_detr(record: _MomentDetr) -> Prediction:
    windows, saliency = record.pred_relevant_windows, record.pred_saliency_scores
    if windows is None and saliency is None:
        raise ValueError(
            f"qid {record.qid}: found neither pred_relevant_windows nor pred_saliency_scores"
        )
    ranked = (
        None if windows is None else tuple((w[0], w[1], w[2] if w[2:] else 0.0) for w in windows)
    )
    return Prediction(
        key=str(record.qid),
        id=str(record.qid),
        video=record.vid,
        query=record.query,
        spans=None if ranked is None else tuple(window[:2] for window in ranked[:1]),
        windows=ranked,
        saliency=None if saliency is None else tuple(saliency),
    )


def _timelens(key: str, entry: object) -> Prediction:
    """As the official scorer loads it: `timestamps`, and without them what it reads in the text."""
    try:
        record = _TimeLens.model_validate(entry)
        video, query, truth = _split_key(key)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{key!r}: {_said(error)}") from error
    spans = record.timestamps
    if spans is None:
        spans = list(read_timelens(record.answers or "").spans)
    return Prediction(
        key=key, video=video, query=query, truth=truth, text=record.answers, spans=tuple(spans)
    )


def _split_key(key: str) -> tuple[str, str, tuple[Span, ...]]:
    video, _, rest = key.partition(KEY_SEPARATOR)
    query, separator, written = rest.rpartition(KEY_SEPARATOR)
    if not separator:
        raise ValueError("wanted video>>>query>>>span")
    span = ast.literal_eval(written)
    spans = span if span and isinstance(span[0], list | tuple) else (span,)
    return video, query, TypeAdapter(tuple[Span, ...]).validate_python(spans)


def _vtg_llm(key: str, entry: object) -> Prediction:
    try:
        record = _VtgLlm.model_validate(entry)
    except ValidationError as error:
        raise ValueError(f"{key!r}: {_said(error)}") from error
    return Prediction(key=key, video=record.vid, query=record.query, spans=tuple(record.timestamp))


def _json(content: str) -> Any:
    """A JSON document in which no key stands twice."""
    try:
        return json.loads(content, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"found no JSON ({error}), {WANTED}") from error


def _json_or_none(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"found {twice!r} twice, wanted one prediction for a query")
    return found


def _said(error: Exception) -> str:
    """The first problem of a validation error, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "record"
    return f"{where}: found {str(first['input'])[:80]}: {first['msg']}"
