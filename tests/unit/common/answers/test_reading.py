"""Every parser against the reference tables, 150 awkward answers, and itself."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.answers.reading import (
    PARSERS,
    find_answer,
    grounding_answer,
    highlight_answer,
    read_highlights,
    read_spans,
)
from common.answers.spans import Span
from common.messages import Highlight

TESTS = Path(__file__).parents[3]
PARSE_TABLE = json.loads((TESTS / "golden/reward/parse_table.json").read_text())
AWKWARD = [
    json.loads(line)
    for line in (TESTS / "fixtures/awkward_answers.jsonl").read_text("utf-8").splitlines()
]
PUBLISHED = TESTS.parent.parent / "shared/data/timelens/answer_formats.derived.jsonl"


def listed(spans: tuple[Span, ...]) -> list[list[float]]:
    return [list(span) for span in spans]


@pytest.mark.parametrize("row", PARSE_TABLE, ids=lambda row: row["text"][:40])
def test_presets_read_every_row_of_the_reference_table(row: dict[str, Any]) -> None:
    train = row["seed_reward_parse"]
    assert listed(read_spans(row["text"], parser="seed_train").spans) == ([train] if train else [])
    for parser in ("seed_eval", "timelens"):
        assert listed(read_spans(row["text"], parser=parser).spans) == row[f"{parser}_extract_time"]


@pytest.mark.parametrize("row", AWKWARD, ids=lambda row: row["text"][:40])
def test_default_reads_awkward_answers(row: dict[str, Any]) -> None:
    reading = read_spans(row["text"])
    assert listed(reading.spans) == row["spans"]
    assert reading.reversed is row["reversed"]


def test_there_are_over_a_hundred_awkward_answers() -> None:
    assert len({row["text"] for row in AWKWARD}) > 100


def test_default_reads_every_published_answer_shape() -> None:
    if not PUBLISHED.exists():
        pytest.skip("the published answers lie outside the repository; awkward_answers has shapes")
    rows = [json.loads(line) for line in PUBLISHED.read_text("utf-8").splitlines()]
    assert len(rows) == 150
    wrong = [
        row["answer"] for row in rows if listed(read_spans(row["answer"]).spans) != row["spans"]
    ]
    assert not wrong


def test_seed_eval_uses_the_first_pair_in_whole_seconds_by_bankers_rounding() -> None:
    reading = read_spans("<answer>2.5 to 7.5, 9.0 to 10.0</answer>", parser="seed_eval")
    assert reading.spans == ((2.5, 7.5), (9.0, 10.0))
    assert reading.used == ((2.0, 8.0),)


def test_seed_eval_does_not_find_a_block_over_two_lines() -> None:
    text = "1 to 2 <answer>\n5 to 6</answer>"
    assert read_spans(text, parser="seed_eval").used == ((1.0, 2.0),)
    text = "1 to 2 <answer>\n5 to 6</answer><answer>7 to 8</answer>"
    assert read_spans(text, parser="seed_eval").used == ((7.0, 8.0),)


def test_timelens_uses_the_first_pair_even_in_a_thought() -> None:
    text = "<think>3 to 4</think><answer>10 to 20</answer>"
    assert read_spans(text, parser="timelens").used == ((3.0, 4.0),)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<think>3 to 4</think><answer>10.5 and 20</answer>", ((10.5, 20.0),)),
        ("5 to 10 and 15 to 20", ((15.0, 20.0),)),
        ("5  to 10", ()),
        ("5-10", ()),
        ("1 to 2 to 3", ((1.0, 2.0),)),
    ],
)
def test_timezero_takes_the_last_pair_with_single_spaces(
    text: str, wanted: tuple[Span, ...]
) -> None:
    assert read_spans(text, parser="timezero").used == wanted


def test_unknown_parser_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="found 'regex', wanted one of default, seed_train"):
        read_spans("1 to 2", parser="regex")


@pytest.mark.parametrize("parser", PARSERS)
@given(text=st.text(alphabet="<>/thinkanswer 0123456789.:,-to\n\u0130\u0663"))
def test_no_text_breaks_a_parser(parser: str, text: str) -> None:
    for start, end in read_spans(text, parser=parser).spans:
        assert start == start
        assert end == end


@given(
    numbers=st.lists(st.integers(0, 10**7), min_size=2, max_size=8, unique=True),
    decimals=st.integers(2, 6),
)
def test_every_parser_reads_back_what_is_printed(numbers: list[int], decimals: int) -> None:
    cut = sorted(number / 100 for number in numbers[: len(numbers) // 2 * 2])
    spans = tuple(zip(cut[::2], cut[1::2], strict=True))
    text = grounding_answer(spans, decimals=decimals)
    assert read_spans(text).spans == spans
    assert read_spans(text, parser="seed_train").spans == spans[-1:]
    assert read_spans(text, parser="seed_eval").spans == spans
    assert read_spans(text, parser="timelens").spans == spans
    assert read_spans(text, parser="timezero").spans == spans[-1:]


@given(
    numbers=st.tuples(st.decimals(0, 10**7, places=3), st.decimals(0, 10**7, places=3)),
    join=st.sampled_from(["to", "and", "-"]),
    unit=st.sampled_from(["", "s"]),
)
def test_the_short_way_reads_as_the_long_one(
    numbers: tuple[Decimal, Decimal], join: str, unit: str
) -> None:
    start, end = numbers
    text = f"{start}{unit} {join} {end}{unit}"
    assert read_spans(text).spans == read_spans(f"Found: {text}").spans != ()


def test_only_a_closed_block_counts_as_tagged() -> None:
    assert read_spans("<Answer>1 to 2</Answer>").tagged
    assert not read_spans("<answer>1 to 2").tagged
    assert not read_spans("1 to 2").tagged


def test_numbers_in_thoughts_are_not_part_of_the_answer() -> None:
    assert "4" not in find_answer("<think>3 to 4</think> it is 5 to 6").text
    assert find_answer("<think>3 to 4").text == ""


SENTENCE = (
    "<answer> The highlight timestamps are in the 82, 84, 86 seconds. "
    "Their saliency scores are 1.3, 1.7, 2 </answer>"
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (SENTENCE, [(82, 1.3), (84, 1.7), (86, 2.0)]),
        (SENTENCE.lower().replace("<answer>", "<ANSWER>"), [(82, 1.3), (84, 1.7), (86, 2.0)]),
        ("timestamps 82, 84, 86. scores: 1.3, 1.7", [(82, 1.3), (84, 1.7)]),
        ("timestamps 82. scores: 1.3, 1.7", [(82, 1.3)]),
        ("timestamps 82s and 1:24; saliency score 1 and 2", [(82, 1.0), (84, 2.0)]),
        (
            '[{"time_s": 82, "score": 1.3}, {"time_s": 84, "score": 1.7}]',
            [(82, 1.3), (84, 1.7)],
        ),
        ("<think>scores 1 at 2</think><answer>nothing</answer>", []),
        ("82, 84", []),
        ("", []),
    ],
)
def test_highlights_are_read(text: str, wanted: list[tuple[float, float]]) -> None:
    assert [(h.time_s, h.score) for h in read_highlights(text)] == wanted


@given(
    st.lists(
        st.tuples(st.integers(0, 5000).map(lambda t: t * 2), st.integers(0, 400)),
        min_size=1,
        max_size=40,
    )
)
def test_highlights_are_read_back_as_printed(pairs: list[tuple[int, int]]) -> None:
    highlights = tuple(Highlight(time_s=time_s, score=score / 100) for time_s, score in pairs)
    assert read_highlights(highlight_answer(highlights)) == highlights
