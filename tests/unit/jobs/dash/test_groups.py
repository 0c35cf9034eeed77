"""Groups are filtered as people ask for them, and say what became of each answer."""

from pathlib import Path
from typing import Any

import pytest

from common.messages import Highlight, HighlightsTarget, TextTarget
from common.queue.kept_groups import GroupSummary, file_of
from jobs.dash.groups import FEW, GroupIndex, Wanted, chosen, elsewhere, mean_reward, shown
from tests.fixtures.pages.run_folder import answer, kept_group, write_groups

TIED = kept_group(
    answer("a", reward=0.5, advantage=0.0),
    answer("b", reward=0.5, advantage=0.0),
    step=1,
    prompt_id="tied",
    query="A Cat",
    row_id="170",
)
BEATEN = kept_group(step=2, prompt_id="beaten")
BEST = kept_group(
    answer("a", reward=0.95, advantage=1.0),
    answer("b", reward=None, advantage=None),
    answer("c", reward=0.9, advantage=0.2, injected=True),
    step=3,
    prompt_id="best",
)
ALL = [GroupSummary.of(group) for group in (TIED, BEATEN, BEST)]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["best", "beaten", "tied"]),
        ({"order": "oldest"}, ["tied", "beaten", "best"]),
        ({"order": "highest"}, ["best", "tied", "beaten"]),
        ({"order": "lowest"}, ["beaten", "tied", "best"]),
        ({"kind": "truth_beat_all"}, ["beaten"]),
        ({"kind": "all_tied"}, ["tied"]),
        ({"kind": "unread"}, ["beaten"]),
        ({"text": " cAt"}, ["tied"]),
        ({"text": "17"}, ["best", "beaten", "tied"]),
        ({"text": "row:17"}, ["best", "beaten"]),
        ({"text": "row:1"}, []),
        ({"low": 0.5}, ["best", "tied"]),
        ({"high": 0.4}, ["beaten"]),
        ({"low": 0.4, "high": 0.6}, ["tied"]),
        ({"first_step": 2}, ["best", "beaten"]),
        ({"last_step": 1}, ["tied"]),
        ({"kind": "unread", "first_step": 3}, []),
    ],
)
def test_filters(wanted: dict[str, Any], found: list[str]) -> None:
    assert [group.prompt_id for group in chosen(ALL, Wanted(**wanted))] == found


def test_the_mean_is_the_policy_s_and_leaves_out_what_has_no_verdict() -> None:
    assert [mean_reward(group) for group in ALL] == pytest.approx([0.5, 0.3, 0.95])
    nothing = kept_group(answer("a", reward=None, advantage=None))
    assert mean_reward(GroupSummary.of(nothing)) is None
    assert chosen([GroupSummary.of(nothing)], Wanted(low=0.0)) == []


def test_an_index_reads_what_changed_and_leaves_out_what_it_cannot_read(tmp_path: Path) -> None:
    write_groups(tmp_path, [TIED, BEATEN])
    index = GroupIndex(tmp_path)
    first = index.summaries()
    assert [group.step for group in first] == [1, 2]
    write_groups(tmp_path, [BEST])
    file_of(tmp_path, 1).unlink()
    file_of(tmp_path, 9).write_bytes(b"half a fi")
    second = index.summaries()
    assert [group.prompt_id for group in second] == ["beaten", "best"]
    assert second[0] is first[1], "not read again"
    assert index.group(2, "beaten") == BEATEN
    for step, prompt in ((1, "tied"), (2, "none"), (9, "x")):
        with pytest.raises(KeyError):
            index.group(step, prompt)


def test_an_index_of_a_folder_at_rest_looks_at_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_groups(tmp_path, [TIED, BEATEN])
    index = GroupIndex(tmp_path)
    index.summaries()
    with monkeypatch.context() as patch:
        patch.setattr("jobs.dash.groups.kept_steps", None)
        with pytest.raises(TypeError):
            index.summaries()  # it changed a moment ago
    monkeypatch.setattr("jobs.dash.groups.RACY_S", 0.0)
    first = index.summaries()
    with monkeypatch.context() as patch:
        patch.setattr("jobs.dash.groups.kept_steps", None)
        assert index.summaries() is first
    write_groups(tmp_path, [BEST])
    assert len(index.summaries()) == 3


def test_the_newest_of_many_steps_are_there_before_the_others(tmp_path: Path) -> None:
    write_groups(tmp_path, [kept_group(step=step) for step in range(1, FEW + 2)])
    index = GroupIndex(tmp_path)
    first = index.newest(3)
    assert first is not None
    assert [group.step for group in first] == [FEW - 1, FEW, FEW + 1]
    everything = index.summaries()
    assert everything[-3:] == first
    assert index.newest(3) is None, "all are read"
    file_of(tmp_path, 1).unlink()
    assert GroupIndex(tmp_path).newest(3) is None, "few are read at once"


def test_what_cannot_be_read_yet_is_tried_again_though_its_folder_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.dash.groups.RACY_S", 0.0)
    write_groups(tmp_path, [TIED])
    whole = file_of(tmp_path, 1).read_bytes()
    file_of(tmp_path, 1).write_bytes(whole[:20])  # being copied
    index = GroupIndex(tmp_path)
    assert index.summaries() == []
    file_of(tmp_path, 1).write_bytes(whole)
    assert len(index.summaries()) == 1


def test_a_run_without_groups_has_none(tmp_path: Path) -> None:
    assert GroupIndex(tmp_path).summaries() == []


def test_the_same_query_is_found_in_other_steps_and_runs() -> None:
    here = GroupSummary.of(kept_group(step=8, prompt_id="again"))
    places = elsewhere(ALL[1], [("one", [*ALL, here]), ("two", [here])])
    assert [(place.run, place.step) for place in places] == [
        *(("one", 2), ("one", 3), ("one", 8), ("two", 8)),
    ]


def test_a_group_says_what_the_loss_did_with_each_answer() -> None:
    made = kept_group(
        answer("up", reward=0.9, advantage=1.25),
        answer("down", reward=0.1, advantage=-0.5),
        answer("zero", reward=0.5, advantage=0.0),
        answer("away", reward=None, advantage=None),
        answer("cut", reward=0.2, advantage=None, finish_reason="abort"),
        answer("long", reward=0.2, advantage=None, finish_reason="length"),
        answer("tied", reward=0.2, advantage=None),
        answer("truth", reward=0.8, advantage=0.3, injected=True),
    )
    said = [one.fate for one in shown(made, run="r").answers]
    for text, fragment in zip(
        said,
        (
            "Made more likely, each token with weight +1.25.",
            "Made less likely, each token with weight -0.50.",
            "moved nothing",
            "without a verdict (away)",
            "the engine cut it short",
            "ran out of tokens (learner.advantage.truncated)",
            "tie (learner.advantage.zero_variance)",
            "Its ratio is 1 by definition",
        ),
        strict=True,
    ):
        assert fragment in text


def test_policy_answers_of_sft_are_not_trained_on() -> None:
    made = kept_group(
        answer("a", reward=0.9, advantage=None),
        answer("b", reward=0.9, advantage=1.0, injected=True),
        strategy="sft",
    )
    assert "injected answer alone" in shown(made, run="r").answers[0].fate


def test_a_view_has_versions_tokens_and_who_earned_most() -> None:
    view = shown(kept_group(step=5), run="r")
    first, _, truth = view.answers
    assert first.lag == 1
    assert (first.tokens[0].text, first.tokens[0].logprob) == ("two", -0.25)
    assert truth.tokens[0].logprob is None
    assert (view.truth, view.beats) == ([(2.0, 6.0)], "The injected truth beat every answer.")
    assert shown(TIED, run="r").beats == "All answers earned the same."
    assert shown(BEST, run="r").beats.startswith("Answer 1 earned most, at least as much")


def test_a_view_says_which_part_of_its_video_a_row_asks_about() -> None:
    group = kept_group()
    assert shown(group, run="r").window_s is None
    clip = group.clip.model_copy(update={"window_s": (2.0, 6.5)})
    assert shown(kept_group(clip=clip), run="r").window_s == (2.0, 6.5)


def test_truth_is_shown_in_each_of_its_forms() -> None:
    marks = HighlightsTarget(highlights=(Highlight(time_s=4, score=1.0),))
    assert shown(kept_group(target=marks), run="r").truth_marks_s == [4.0]
    text = TextTarget(text="<answer> 7.0 to 11.0 </answer>")
    assert shown(kept_group(target=text), run="r").truth == [(7.0, 11.0)]
