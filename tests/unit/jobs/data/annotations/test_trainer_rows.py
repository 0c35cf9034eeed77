"""Rows: every span true or no row, answers read back to the spans, prompts without leaks."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.answers.reading import read_highlights, read_spans
from common.answers.spans import Span
from common.messages import Highlight, HighlightsTarget, SpansTarget
from common.prompts import HIGHLIGHTS, grounding_problem, highlight_problem
from common.rows import TrainerRow, UnusableRowError
from jobs.data.annotations.records import Annotation
from jobs.data.annotations.trainer_rows import AnswerFormat, RowRules, make_row

PUBLISHED_KEYS = [
    "problem",
    "answer",
    "problem_type",
    "data_type",
    "videos",
    "duration",
    "difficulty",
    "gt_len",
]


def annotation(**changed: Any) -> Annotation:
    given: dict[str, Any] = {
        "position": "line 1",
        "video": "a.mp4",
        "query": "a dog barks",
        "spans": ((1.0, 2.0),),
        "duration_s": 10.0,
    }
    return Annotation(**(given | changed))


def spans_of(annotation_: Annotation, *, rules: RowRules | None = None) -> object:
    return make_row(annotation_, rules=rules or RowRules()).fields["spans"]


def test_keys_come_in_the_published_order_and_the_typed_truth_after_them() -> None:
    made = make_row(annotation(difficulty=0.5), rules=RowRules())
    assert list(made.fields) == [*PUBLISHED_KEYS, "spans"]
    assert made.fields["answer"] == "<answer> 1.0 to 2.0 </answer>"
    assert (made.gt_len_s, made.coverage, made.clipped) == (1.0, 0.1, False)


@pytest.mark.parametrize(
    ("style", "answer"),
    [
        (None, "<answer> 1.0 to 2.0 </answer>"),
        ("json_list", "[[1.0, 2.0]]"),
        ("tagged_json_list", "<answer> [[1.0, 2.0]] </answer>"),
    ],
)
def test_a_record_with_an_instruction_keeps_how_it_answers(style: Any, answer: str) -> None:
    asked = annotation(problem="<video>List when a dog barks.", style=style)
    assert make_row(asked, rules=RowRules()).fields["answer"] == answer
    ours = RowRules(extract_question=True)
    asked = annotation(problem='<video>find the event "a dog barks" in the video', style=style)
    assert make_row(asked, rules=ours).fields["answer"] == "<answer> 1.0 to 2.0 </answer>"


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ((math.nan, 2.0), "span not finite"),
        ((1.0, math.inf), "span not finite"),
        ((-0.1, 2.0), "span negative"),
        ((2.0, 2.0), "span empty"),
        ((2.0, 1.0), "span reversed"),
        ((10.0, 10.5), "span past the end"),
        ((9.0, 11.01), "span past the end"),
    ],
)
def test_span_that_cannot_be_true_rejects_the_whole_record(span: Span, reason: str) -> None:
    with pytest.raises(UnusableRowError, match=reason):
        make_row(annotation(spans=((1.0, 2.0), span)), rules=RowRules())


@pytest.mark.parametrize(("end", "clipped"), [(10.0, False), (10.5, True), (11.0, True)])
def test_end_within_the_tolerance_is_cut_at_the_end_of_the_video(end: float, clipped: bool) -> None:
    made = make_row(annotation(spans=((9.0, end),)), rules=RowRules())
    assert made.fields["spans"] == [(9.0, 10.0)]
    assert made.clipped is clipped


def test_tolerance_is_a_knob() -> None:
    late = annotation(spans=((9.0, 12.0),))
    assert spans_of(late, rules=RowRules(end_tolerance_s=2.0)) == [(9.0, 10.0)]
    with pytest.raises(UnusableRowError, match="see --end-tolerance"):
        spans_of(late, rules=RowRules(end_tolerance_s=0.0))


def test_minus_zero_is_written_as_zero() -> None:
    made = make_row(annotation(spans=((-0.0, 2.0),)), rules=RowRules())
    assert made.fields["answer"] == "<answer> 0.0 to 2.0 </answer>"


def test_duration_comes_from_the_side_file_only_without_an_own_one() -> None:
    rules = RowRules(durations={"a": 20.0})
    assert make_row(annotation(), rules=rules).duration_s == 10.0
    assert make_row(annotation(duration_s=None, video="x/a.webm"), rules=rules).duration_s == 20.0
    assert make_row(annotation(duration_s=math.nan), rules=rules).duration_s == 20.0
    with pytest.raises(UnusableRowError, match="bad duration"):
        make_row(annotation(duration_s=-1.0), rules=RowRules())


def test_unknown_duration_leaves_the_end_unchecked_and_the_key_out() -> None:
    made = make_row(annotation(duration_s=None, spans=((1.0, 1e6),)), rules=RowRules())
    assert "duration" not in made.fields
    assert made.coverage is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"query": " . "}, "no query"),
        ({"query": "a <video> tag"}, "bad problem"),
        ({"problem": "no tag"}, "bad problem"),
        ({"spans": ()}, "no target"),
        ({"difficulty": 1.5}, "bad difficulty"),
        ({"difficulty": math.nan}, "bad difficulty"),
        ({"window": (-1.0, 84.7)}, "bad window"),
        ({"window": (39.0, 39.0)}, "bad window"),
        ({"window": (math.nan, 39.0)}, "bad window"),
        ({"window": (0.0, 5.0), "spans": ((1.0, 7.0),)}, "span past the end"),
        ({"video": ""}, "no video"),
    ],
)
def test_record_without_question_or_truth_is_rejected(changed: Any, reason: str) -> None:
    with pytest.raises(UnusableRowError, match=reason):
        make_row(annotation(**changed), rules=RowRules())


@pytest.mark.parametrize(
    ("window", "duration_s", "written"),
    [
        ((39.0, 84.7), 45.7, {"duration": 45.7, "start_s": 39.0, "end_s": 84.7}),
        ((39.0, 84.5), None, {"duration": 45.5, "start_s": 39.0, "end_s": 84.5}),
        ((39.0, 84.5), 300.0, {"duration": 45.5, "start_s": 39.0, "end_s": 84.5}),
        ((39.0, math.inf), None, {"duration": 61.0, "start_s": 39.0}),
        ((39.0, math.inf), 60.5, {"duration": 60.5, "start_s": 39.0}),
    ],
)
def test_window_is_written_with_the_length_of_the_part(
    window: tuple[float, float], duration_s: float | None, written: dict[str, float]
) -> None:
    rules = RowRules(durations={"a": 100.0})
    about = annotation(video="a.mp4", window=window, duration_s=duration_s, spans=((1.0, 4.0),))
    fields = make_row(about, rules=rules).fields
    assert {
        key: fields[key] for key in ("duration", "start_s", "end_s") if key in fields
    } == written


def test_window_that_starts_after_its_file_is_rejected() -> None:
    about = annotation(video="a.mp4", window=(120.0, math.inf), duration_s=None)
    with pytest.raises(UnusableRowError, match=r"bad window: found a start of 120\.0 s"):
        make_row(about, rules=RowRules(durations={"a": 100.0}))


def test_further_keys_ride_along_unless_they_are_no_json() -> None:
    rules = RowRules(keep_extras=True)
    made = make_row(annotation(extras={"offline_output": ""}), rules=rules)
    assert list(made.fields)[-1] == "offline_output"
    with pytest.raises(UnusableRowError, match="bad record: further keys"):
        make_row(annotation(extras={"score": math.nan}), rules=rules)


HIGHLIGHTED = (Highlight(time_s=4.0, score=1.3), Highlight(time_s=6.0, score=2.0))


@pytest.mark.parametrize(
    "own",
    [
        '<video>Please locate the moment "a dog barks" and answer with two numbers.',
        "<video>a dog barks. Provide the start and end times as JSON.",
    ],
)
def test_question_is_taken_out_of_a_foreign_instruction(own: str) -> None:
    foreign = annotation(problem=own, query=None)
    assert make_row(foreign, rules=RowRules()).fields["problem"] == own
    asked = make_row(foreign, rules=RowRules(extract_question=True)).fields["problem"]
    assert asked == grounding_problem("a dog barks", mode="answer")


def test_instruction_without_a_question_is_rejected_when_it_is_asked_for() -> None:
    with pytest.raises(UnusableRowError, match="no query"):
        make_row(
            annotation(problem="<video>What now?", query=None),
            rules=RowRules(extract_question=True),
        )


def test_highlights_are_asked_for_by_task_or_where_there_are_no_spans() -> None:
    both = annotation(highlights=HIGHLIGHTED)
    assert "highlights" not in make_row(both, rules=RowRules()).fields
    made = make_row(both, rules=RowRules(task="highlights"))
    assert made.fields["problem"] == highlight_problem("a dog barks", mode="answer")
    assert made.fields["problem_type"] == "highlight detection"
    assert read_highlights(made.fields["answer"]) == HIGHLIGHTED
    alone = make_row(annotation(highlights=HIGHLIGHTED, spans=()), rules=RowRules())
    assert alone.fields["highlights"] == made.fields["highlights"]
    assert TrainerRow.parse(made.dump()).target == HighlightsTarget(highlights=HIGHLIGHTED)


def test_task_highlights_rejects_what_has_none() -> None:
    with pytest.raises(UnusableRowError, match="no target"):
        make_row(annotation(), rules=RowRules(task="highlights"))


def test_highlight_past_the_end_is_rejected() -> None:
    late = annotation(highlights=(Highlight(time_s=10.0, score=1.0),), spans=())
    with pytest.raises(UnusableRowError, match="highlight past the end"):
        make_row(late, rules=RowRules())


TIMES = st.floats(min_value=0, max_value=1e6, allow_nan=False).filter(
    lambda time_s: time_s == 0 or time_s > 1e-9
)
SPANS = st.lists(
    st.tuples(TIMES, TIMES).filter(lambda span: span[0] < span[1]), min_size=1, max_size=8
)


@pytest.mark.parametrize("answer_format", ["tag", "json"])
@given(spans=SPANS)
def test_answer_reads_back_to_the_same_spans(
    answer_format: AnswerFormat, spans: list[Span]
) -> None:
    made = make_row(
        annotation(spans=tuple(spans), duration_s=None), rules=RowRules(answer_format=answer_format)
    )
    assert read_spans(made.fields["answer"]).spans == tuple(spans)
    without_typed = TrainerRow.parse(made.dump()).model_copy(update={"spans": None})
    assert without_typed.target == SpansTarget(spans=tuple(spans))


def test_json_answer_of_one_span_is_the_published_object() -> None:
    made = make_row(annotation(), rules=RowRules(answer_format="json"))
    assert json.loads(made.fields["answer"]) == {"time": [1.0, 2.0]}


@pytest.mark.parametrize("mode", ["answer", "think"])
def test_highlight_example_cannot_be_a_true_answer(mode: Any) -> None:
    example = read_highlights(HIGHLIGHTS[mode].split("Now I will")[0].split("like:")[1])
    assert len(example) == 4
    assert all(highlight.time_s % 2 == 1 for highlight in example)
    assert highlight_problem("{braces} stay", mode=mode).count("'{braces} stay'") == 1
