"""Trainer rows: what is read, what is rejected and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import CheckpointError, ConfigError
from common.messages import Highlight, HighlightsTarget, SpansTarget, TextPart, VideoPart
from common.prompts import grounding_problem, highlight_problem
from common.rows import Row, UnusableRowError
from services.learner.rows import GivenUp, GivenUpRows, RejectedRows, Rejection, load_rows
from tests.fixtures.servers.places import no_room
from tests.fixtures.wire import CLIP

PUBLISHED = Path(__file__).parents[4] / "shared/data/timelens/seed_timelens_grpo_train.head26.jsonl"

PROBLEM = grounding_problem("The door opens.", mode="answer")
SPEAKING = grounding_problem('he says "hi" twice', mode="answer")
GOOD: dict[str, Any] = {
    "problem": PROBLEM,
    "answer": "<answer> 98.0 to 103.0 </answer>",
    "videos": ["a/b.mp4"],
    "difficulty": 0.3,
}


def load(tmp_path: Path, *lines: dict[str, Any] | str) -> tuple[list[Row], RejectedRows]:
    file = tmp_path / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts) + "\n")
    rejected = RejectedRows(tmp_path / "run" / "rejected_rows.jsonl")
    return load_rows(file, video_root="/videos", rejected=rejected), rejected


def reasons(tmp_path: Path, *lines: dict[str, Any] | str) -> list[tuple[str, str]]:
    """Reason and detail of each rejected line, beside one good line."""
    _, rejected = load(tmp_path, GOOD, *lines)
    return [(rejection.reason, rejection.detail) for rejection in rejected.all]


class TestTargets:
    @pytest.mark.parametrize(
        ("answer", "spans"),
        [
            ("<answer> 98.0 to 103.0 </answer>", ((98.0, 103.0),)),
            ("7.0 to 11.0", ((7.0, 11.0),)),
            ('{"time": [7.0, 11.0]}', ((7.0, 11.0),)),
            ("1 to 3, 5 to 9", ((1.0, 3.0), (5.0, 9.0))),
        ],
    )
    def test_published_answer_forms_become_spans(
        self, tmp_path: Path, answer: str, spans: tuple[tuple[float, float], ...]
    ) -> None:
        [row], _ = load(tmp_path, GOOD | {"answer": answer})
        assert row.target == SpansTarget(spans=spans)
        assert row.task == "temporal_grounding"

    @pytest.mark.parametrize(
        ("row", "style"),
        [
            (GOOD | {"answer": "[[1, 3], [5, 9]]"}, "json_list"),
            (GOOD | {"answer": "<answer>[[1, 3]]</answer>", "spans": [[1, 3]]}, "tagged_json_list"),
            (GOOD | {"answer": '{"time": [1, 3]}'}, None),
            ({"videos": ["a.mp4"], "query": "a door", "answer": "[[1, 3]]"}, None),
        ],
    )
    def test_a_target_is_written_as_the_row_writes_it(
        self, tmp_path: Path, row: dict[str, Any], style: str | None
    ) -> None:
        """Where the prompt is ours, so is the style."""
        [found], _ = load(tmp_path, row)
        assert isinstance(found.target, SpansTarget)
        assert found.target.style == style

    def test_typed_spans_win_over_the_answer(self, tmp_path: Path) -> None:
        [row], _ = load(tmp_path, GOOD | {"spans": [[1, 2.5]]})
        assert row.target == SpansTarget(spans=((1.0, 2.5),))

    @pytest.mark.parametrize(
        "keys",
        [
            {"highlights": [{"time_s": 82, "score": 1.3}, {"time_s": 84, "score": 1.7}]},
            {
                "answer": "<answer> The highlight timestamps are in the 82, 84 seconds. "
                "Their saliency scores are 1.3, 1.7 </answer>"
            },
        ],
    )
    def test_highlights_typed_or_written_out(self, tmp_path: Path, keys: dict[str, Any]) -> None:
        [row], _ = load(tmp_path, GOOD | keys)
        wanted = (Highlight(time_s=82, score=1.3), Highlight(time_s=84, score=1.7))
        assert row.target == HighlightsTarget(highlights=wanted)
        assert row.task == "highlight_detection"


class TestPaths:
    def test_relative_video_starts_at_the_root_and_absolute_stays(self, tmp_path: Path) -> None:
        rows, _ = load(tmp_path, GOOD, GOOD | {"videos": ["/elsewhere/c.mp4"]})
        assert [row.video for row in rows] == ["/videos/a/b.mp4", "/elsewhere/c.mp4"]

    def test_row_id_is_the_line_number_blank_lines_included(self, tmp_path: Path) -> None:
        rows, _ = load(tmp_path, GOOD, "", "{", GOOD)
        assert [row.row_id for row in rows] == ["1", "4"]


class TestMessages:
    def test_answer_mode_asks_the_problem_as_written(self, tmp_path: Path) -> None:
        [row], _ = load(tmp_path, GOOD)
        [turn] = row.messages("answer")
        assert turn.content == (VideoPart(), TextPart(text=PROBLEM.removeprefix("<video>")))

    @pytest.mark.parametrize(
        ("keys", "query"),
        [
            ({"query": "A cat\njumps"}, "A cat\njumps"),
            ({}, "The door opens."),
            ({"problem": SPEAKING}, 'he says "hi" twice'),
            ({"problem": '<video>Locate the clip "a dog" now.'}, "a dog"),
            ({"problem": "<video>find the moment \u201ca dog\u201d now."}, "a dog"),
            (
                {"problem": "<video>When does it rain?\nProvide the start and end times."},
                "When does it rain?",
            ),
        ],
    )
    def test_think_mode_is_built_from_the_query(
        self, tmp_path: Path, keys: dict[str, Any], query: str
    ) -> None:
        [row], _ = load(tmp_path, GOOD | keys)
        wanted = grounding_problem(query, mode="think").removeprefix("<video>")
        assert row.messages("think")[0].content[1] == TextPart(text=wanted)

    def test_query_alone_is_enough(self, tmp_path: Path) -> None:
        line = {key: value for key, value in GOOD.items() if key != "problem"}
        [row], _ = load(tmp_path, line | {"query": "The door opens."})
        assert row.messages("answer")[0].content[1] == TextPart(text=PROBLEM[len("<video>") :])

    def test_think_mode_without_a_query_is_refused(self, tmp_path: Path) -> None:
        [row], _ = load(tmp_path, GOOD | {"problem": "<video>What is it?"})
        with pytest.raises(
            UnusableRowError, match=r"no query: found none in '<video>What is it\?'"
        ):
            row.messages("think")

    def test_highlight_row_is_asked_for_a_thought_with_its_own_query(self, tmp_path: Path) -> None:
        asked = {
            "problem": highlight_problem("it's a dog.", mode="answer"),
            "highlights": [{"time_s": 2, "score": 1}],
        }
        [row], _ = load(tmp_path, GOOD | asked)
        wanted = highlight_problem("it's a dog.", mode="think").removeprefix("<video>")
        assert row.messages("think")[0].content[1] == TextPart(text=wanted)


class TestTargetAgainstClip:
    """The clip lasts 10 s."""

    @pytest.mark.parametrize("spans", [[[1, 9]], [[9.5, 10.9]], [[0, 1], [2, 10]]])
    def test_inside_or_just_over_the_end_passes(
        self, tmp_path: Path, spans: list[list[float]]
    ) -> None:
        [row], _ = load(tmp_path, GOOD | {"spans": spans})
        row.check_against(CLIP)

    @pytest.mark.parametrize(
        "keys",
        [
            {"spans": [[10.0, 10.5]]},
            {"spans": [[2, 11.5]]},
            {"spans": [[1, 2], [30, 40]]},
            {"highlights": [{"time_s": 2, "score": 1}, {"time_s": 12, "score": 1}]},
        ],
    )
    def test_outside_is_refused_with_both_values(
        self, tmp_path: Path, keys: dict[str, Any]
    ) -> None:
        [row], _ = load(tmp_path, GOOD | keys)
        with pytest.raises(UnusableRowError, match=r"target outside .*inside 10\.00 s"):
            row.check_against(CLIP)


class TestRejections:
    @pytest.mark.parametrize(
        ("line", "reason", "detail"),
        [
            ("{", "bad JSON", "EOF"),
            ("\xff\xfe", "bad JSON", "expected value"),
            ("[]", "bad row", "object"),
            (GOOD | {"videos": []}, "bad row", "videos: "),
            (GOOD | {"videos": ["a", "b"]}, "bad row", "videos: "),
            (GOOD | {"problem": None}, "bad row", "neither problem nor query"),
            (GOOD | {"problem": "When?"}, "no video tag", "found 0 <video> tags"),
            (GOOD | {"problem": "<video><video>When?"}, "no video tag", "found 2 <video> tags"),
            (GOOD | {"answer": None}, "no target", "found answer None"),
            (GOOD | {"answer": "in the middle"}, "no target", "'in the middle'"),
            (GOOD | {"answer": "9 to 5"}, "bad span", "wanted start before end"),
            (GOOD | {"spans": [[2, 2]]}, "bad span", "found 2.0 to 2.0 s"),
            (GOOD | {"spans": [[1, 2], [-1, 2]]}, "bad span", "found -1.0 to 2.0 s"),
            (GOOD | {"spans": []}, "bad row", "spans: "),
            (GOOD | {"spans": [[1]]}, "bad row", "spans."),
            ('{"spans": [[0, NaN]], "videos": ["a"], "query": "q"}', "bad row", "finite"),
        ],
    )
    def test_bad_line_says_why(
        self, tmp_path: Path, line: dict[str, Any] | str, reason: str, detail: str
    ) -> None:
        [(found_reason, found_detail)] = reasons(tmp_path, line)
        assert found_reason == reason
        assert detail in found_detail

    def test_are_counted_filed_and_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        _, rejected = load(tmp_path, GOOD, "{", "{", GOOD | {"answer": ""})
        assert rejected.counts == {"bad JSON": 2, "no target": 1}
        lines = (tmp_path / "run" / "rejected_rows.jsonl").read_text().splitlines()
        filed = [Rejection.model_validate_json(line) for line in lines]
        assert [(line.row_id, line.reason) for line in filed] == [
            ("2", "bad JSON"),
            ("3", "bad JSON"),
            ("4", "no target"),
        ]
        assert [record.message for record in caplog.records].count("row rejected") == 3

    def test_no_usable_row_stops_with_the_counts(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"no usable row; rejected: 2 x bad JSON.*rejected_rows\.jsonl"
        ):
            load(tmp_path, "{", "{")

    def test_missing_file_names_the_key(self, tmp_path: Path) -> None:
        rejected = RejectedRows(tmp_path / "rejected_rows.jsonl")
        with pytest.raises(ConfigError, match=r"learner\.rows: .*No such file"):
            load_rows(tmp_path / "none.jsonl", video_root="", rejected=rejected)


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED.name} is not beside the repository")
def test_all_published_rows_are_read_in_both_modes(tmp_path: Path) -> None:
    rejected = RejectedRows(tmp_path / "rejected_rows.jsonl")
    rows = load_rows(PUBLISHED, video_root="", rejected=rejected)
    assert (len(rows), len(rejected.all)) == (26, 0)
    assert rows[0].target == SpansTarget(spans=((98.0, 103.0),))
    for row in rows:
        query = row.messages("think")[0].content[1]
        assert isinstance(query, TextPart)
        assert "<think>" in query.text


@pytest.mark.parametrize(
    ("written", "window"),
    [
        ({}, None),
        ({"start_s": 39.5, "end_s": 84.7}, (39.5, 84.7)),
        ({"start_s": 39.5}, (39.5, None)),
        ({"end_s": 84.7}, (0.0, 84.7)),
    ],
)
def test_row_may_ask_about_a_window_of_its_file(
    tmp_path: Path, written: dict[str, float], window: tuple[float, float | None] | None
) -> None:
    (row,), _ = load(tmp_path, GOOD | written)
    assert row.window == window


@pytest.mark.parametrize("written", [{"start_s": -1}, {"start_s": 5, "end_s": 5}, {"end_s": 0}])
def test_window_without_a_length_is_rejected(tmp_path: Path, written: dict[str, float]) -> None:
    assert [reason for reason, _ in reasons(tmp_path, GOOD | written)] == ["bad window"]


def test_target_has_to_lie_in_the_window(tmp_path: Path) -> None:
    (row,), _ = load(tmp_path, GOOD | {"spans": [[1, 3]], "start_s": 2, "end_s": 8})
    row.check_against(CLIP.model_copy(update={"window_s": (2.0, 8.0)}))
    with pytest.raises(UnusableRowError, match=r"wanted it inside 1\.50 s"):
        row.check_against(CLIP.model_copy(update={"window_s": (2.0, 3.5)}))


def test_a_full_disk_ends_the_run_instead_of_the_list(tmp_path: Path) -> None:
    rejected = RejectedRows(tmp_path / "rejected_rows.jsonl")
    given_up = GivenUpRows(tmp_path / "given_up_rows.jsonl", ())
    lost = GivenUp(prompt_id="t-1", row_id="1", epoch=0, reason="r", replica="a")
    with no_room(10):
        for add in (
            lambda: rejected.add(Rejection(row_id="1", reason="bad row", detail="it is")),
            lambda: given_up.add(lost),
        ):
            with pytest.raises(
                CheckpointError, match=r"learner\.run_dir: .*_rows\.jsonl: .* MB fr"
            ):
                add()
