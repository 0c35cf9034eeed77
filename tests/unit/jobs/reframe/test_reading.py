"""What replies say, by hand."""

import pytest

from jobs.reframe.reading import Read, Segments, read_point, read_segments


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ('{"segments": [[1, 2.5]]}', [(1, 2.5)]),
        ('{"segments": [1, 2.5]}', [(1, 2.5)]),
        ('{"segments": [["0:12.5", "1:02:03"], ["7 s", "8.5 seconds"]]}', [(12.5, 3723), (7, 8.5)]),
        (
            '{"segments": [{"start": 1, "end": 2}, {"start_time": 3, "end_time": 4}]}',
            [(1, 2), (3, 4)],
        ),
        ('Sure! ```json\n{"segments": [[3, 1]]}\n``` {not JSON', [(3, 1)]),
        ('{"segments": []}', []),
        ('{"segments": [[1, 2], "nonsense", [3], [4, NaN], [5, 6]]}', [(1, 2), (5, 6)]),
    ],
)
def test_segments_of_json(text: str, spans: list[tuple[float, float]]) -> None:
    assert read_segments(text) == Segments(tuple(spans))


def test_the_last_object_with_segments_counts_and_is_noted() -> None:
    text = 'first {"segments": [[1, 2]]} or {"segments": [[3, 4]]} {"why": {"segments": 1}}'
    assert read_segments(text) == Segments(((3, 4),), ("several objects",))


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ('{"segments": [[1.5, 2], [3, 4', ((1.5, 2), (3, 4))),
        ("Segments: 12.5 to 17 s and 20s - 21 s", ((12.5, 17), (20, 21))),
        ("The segments are 3, 4. I like these segments.", ((3, 4),)),
    ],
)
def test_without_json_pairs_after_the_word_are_taken(
    text: str, spans: tuple[tuple[float, float], ...]
) -> None:
    assert read_segments(text) == Segments(spans, ("no JSON",))


def test_models_of_this_project_answer_in_tags() -> None:
    text = "<answer> 4.5 to 7.0 </answer>"
    assert read_segments(text) == Segments(((4.5, 7.0),), ("answer tags",))
    assert read_segments("<answer> none </answer>") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "From 3 to 4 seconds.",
        "segments: none",
        '{"segments": "none"}',
        '{"segments": ["nonsense"]}',
        "{" * 5000,
        '{"segments": ' + "[" * 100_000,
    ],
)
def test_no_segments(text: str) -> None:
    assert read_segments(text) is None


@pytest.mark.parametrize("key", ["center", "subject_center", "focus", "point", "cxcy"])
def test_points_of_json(key: str) -> None:
    assert read_point(f'{{"{key}": [500, 250.5]}}') == Read((500, 250.5), None)
    assert read_point(f'{{"{key}": {{"x": 1, "y": 2}}}}') == Read((1, 2), None)


def test_a_stated_size_is_kept() -> None:
    assert read_point('{"center": [5, 6], "size": [1280, 720]}') == Read((5, 6), (1280, 720))
    assert read_point('{"center": [5, 6], "size": [0, 720]}') == Read((5, 6), None)
    assert read_point('{"center": [5, 6], "size": "large"}') == Read((5, 6), None)


def test_liberties_with_points_are_noted() -> None:
    several = '{"center": [1, 2]} no, {"center": [3, 4]} {"center": "gone"}'
    assert read_point(several) == Read((3, 4), None, ("several objects",))
    prose = "In frame 7 the subject is at (512, 300.5)."
    assert read_point(prose) == Read((512, 300.5), None, ("no JSON",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I see 1 subject.",
        '{"center": [-3, 4]}',
        "at (-3, 4)",
        '{"center": [NaN, null]}',
        '{"center": [true, false]}',
    ],
)
def test_no_point(text: str) -> None:
    assert read_point(text) is None


def test_a_number_too_large_for_a_float_is_none() -> None:
    assert read_segments(f'{{"segments": [[1, 1{"0" * 400}]]}}') is None
