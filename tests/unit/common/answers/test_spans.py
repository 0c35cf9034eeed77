"""IoU of spans and of span sets, against hand-computed numbers and as properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.answers.spans import Span, iou, length_s, merge, union_iou

times = st.floats(min_value=-100, max_value=10_000, allow_nan=False).map(lambda t: round(t, 3))


@st.composite
def spans(draw: st.DrawFn) -> Span:
    start = draw(times)
    return start, start + draw(st.integers(min_value=1, max_value=100_000)) / 1000


span_sets = st.lists(spans(), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ((7.0, 11.0), (7.0, 11.0), 1.0),
        ((7.0, 11.0), (8.0, 10.0), 0.5),
        ((7.0, 11.0), (6.5, 11.5), 0.8),
        ((7.0, 11.0), (11.0, 12.0), 0.0),
        ((7.0, 11.0), (20.0, 30.0), 0.0),
        ((7.0, 11.0), (11.0, 7.0), 0.0),
        ((7.0, 11.0), (9.0, 9.0), 0.0),
        ((9.0, 9.0), (9.0, 9.0), 0.0),
        ((-3.0, 8.0), (0.0, 8.0), 8 / 11),
    ],
)
def test_iou_is_intersection_over_hull(first: Span, second: Span, wanted: float) -> None:
    assert iou(first, second) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ([(1.0, 3.0), (5.0, 9.0)], [(1.0, 3.0), (5.0, 9.0)], 1.0),
        ([(1.0, 3.0), (5.0, 9.0)], [(1.0, 9.0)], 6 / 8),
        ([(0.0, 10.0)], [(0.0, 4.0), (2.0, 5.0)], 0.5),
        ([(0.0, 1.0), (2.0, 3.0)], [(1.0, 2.0), (3.0, 4.0)], 0.0),
        ([(0.0, 2.0), (4.0, 6.0)], [(1.0, 5.0)], 2 / 6),
        ([(5.0, 5.0)], [(5.0, 5.0), (1.0, 1.0)], 0.0),
    ],
)
def test_union_iou_counts_every_second_once(
    first: list[Span], second: list[Span], wanted: float
) -> None:
    assert union_iou(first, second) == pytest.approx(wanted, abs=1e-12)


def test_merge_joins_touching_spans_and_drops_empty_ones() -> None:
    assert merge([(5, 6), (1, 2), (2, 3), (4, 4), (9, 8)]) == [(1, 3), (5, 6)]
    assert length_s(merge([(0, 10), (5, 15)])) == 15


@given(span_sets, span_sets)
def test_union_iou_is_symmetric_and_between_0_and_1(first: list[Span], second: list[Span]) -> None:
    value = union_iou(first, second)
    assert 0 <= value <= 1
    assert union_iou(second, first) == pytest.approx(value, abs=1e-12)


@given(span_sets)
def test_union_iou_with_itself_is_1(some: list[Span]) -> None:
    assert union_iou(some, some) == pytest.approx(1.0)


@given(spans(), spans())
def test_single_spans_give_plain_iou(first: Span, second: Span) -> None:
    assert union_iou([first], [second]) == iou(first, second)
    assert union_iou([first, first], [second]) == pytest.approx(iou(first, second), abs=1e-9)


@given(span_sets, span_sets, st.integers(-1000, 1000))
def test_union_iou_does_not_change_under_a_shift(
    first: list[Span], second: list[Span], shift_s: int
) -> None:
    def shifted(some: list[Span]) -> list[Span]:
        return [(start + shift_s, end + shift_s) for start, end in some]

    assert union_iou(shifted(first), shifted(second)) == pytest.approx(
        union_iou(first, second), abs=1e-6
    )


@given(span_sets, span_sets, st.sampled_from([0.125, 0.5, 2.0, 30.0, 1024.0]))
def test_union_iou_does_not_change_under_scaling(
    first: list[Span], second: list[Span], factor: float
) -> None:
    def scaled(some: list[Span]) -> list[Span]:
        return [(start * factor, end * factor) for start, end in some]

    assert math.isclose(
        union_iou(scaled(first), scaled(second)), union_iou(first, second), abs_tol=1e-6
    )
