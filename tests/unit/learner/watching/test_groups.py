"""What a run keeps of its groups: answers with what became of them, in bounded room."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from common.config import Run
from common.errors import ConfigError
from common.messages import (
    Highlight,
    HighlightsTarget,
    Sample,
    Scored,
    ScoredGroup,
    SpansTarget,
    Unscored,
    Verdict,
    VersionSpan,
)
from common.queue.kept_groups import file_of, kept_steps, read_groups, read_summaries
from common.rows import Row
from services.learner.watching.groups import KeptGroups, least_missed
from tests.fixtures.wire import scored_group

ROOT = Path(__file__).resolve().parents[4]
MODEL = ROOT / "deploy/tiny-qwen3vl"
ROW = Row(
    row_id="17",
    video="clips/a.mp4",
    problem=None,
    query="the <red> circle",
    target=SpansTarget(spans=((2.0, 6.0),)),
)
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def run(folder: Path, **kept: object) -> Run:
    learner = {"rows": "rows.jsonl", "run_dir": folder, "steps": 9, "keep_groups": kept}
    return Run.model_validate({"shared": {"run_id": "a", "model": str(MODEL)}, "learner": learner})


def sample(text: str, *, injected: bool = False) -> Sample:
    ids = tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)
    return Sample(
        token_ids=ids,
        logprobs=() if injected else tuple(-0.123456 for _ in ids),
        version_spans=() if injected else (VersionSpan(version=3, start=0, end=len(ids)),),
        finish_reason="stop",
        provenance="injected" if injected else "policy",
    )


TEXTS = ("<answer> 2.5 to 6.0 </answer>", "it is over there", "<answer> 2.00 to 6.00 </answer>")


def group(
    prompt_id: str = "p1", rewards: tuple[float | None, ...] = (0.5, 0.1, 0.9)
) -> ScoredGroup:
    verdicts: tuple[Verdict, ...] = tuple(
        Unscored(reason="away") if r is None else Scored(reward=r, parts={"iou": r})
        for r in rewards
    )
    samples = [sample(text) for text in TEXTS[:2]] + [sample(TEXTS[2], injected=True)]
    made = scored_group(prompt_id)
    return made.model_copy(update={"samples": tuple(samples), "verdicts": verdicts})


def keeper(settings: Run, *, row: Row = ROW, resumed_at: int | None = None) -> KeptGroups:
    return KeptGroups(settings, row_of=lambda _id: row, resumed_at=resumed_at)


def test_a_kept_group_says_what_was_answered_and_what_became_of_it(tmp_path: Path) -> None:
    keeper(run(tmp_path)).keep([group()], advantages=[(0.2, None, 1.1)], step=4)
    (kept,) = read_groups(file_of(tmp_path, 4))
    first, second, truth = kept.answers
    assert (kept.query, kept.strategy, kept.step) == ("the <red> circle", "shaping", 4)
    assert first.text == TEXTS[0]
    assert "".join(first.tokens) == TEXTS[0]
    assert set(first.logprobs) == {-0.1235}
    assert len(first.logprobs) == len(first.tokens)
    assert (first.spans, second.spans, truth.spans) == (((2.5, 6.0),), (), ((2.0, 6.0),))
    assert [answer.advantage for answer in kept.answers] == [0.2, None, 1.1]
    assert truth.provenance == "injected"


def test_a_list_needs_the_summaries_alone(tmp_path: Path) -> None:
    groups = [group("p1"), group("p2", (0.4, None, 0.4))]
    keeper(run(tmp_path)).keep(groups, advantages=[(-0.3, None, 1.1), (0, None, 0)], step=4)
    path = file_of(tmp_path, 4)
    first, second = read_summaries(path)
    assert (first.truth_beat_all, first.all_tied, first.unread, first.best_iou) == (
        *(True, False, 1, 0.5),
    )
    assert (second.truth_beat_all, second.all_tied, second.rewards) == (
        *(False, True, (0.4, None, 0.4)),
    )
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert [json.loads(line)["prompt_id"] for line in lines] == ["p1", "p2", "p1", "p2"]


def test_highlights_are_read_as_marks(tmp_path: Path) -> None:
    target = HighlightsTarget(highlights=(Highlight(time_s=2, score=1.5),))
    row = Row(row_id="17", video="a.mp4", problem=None, query="dog", target=target)
    text = (
        "<answer> The highlight timestamps are in the 2, 4 seconds. Their saliency scores are 1, 2"
    )
    samples = (sample(text), sample("nothing"), sample(text, injected=True))
    made = group().model_copy(update={"samples": samples})
    keeper(run(tmp_path), row=row).keep([made], advantages=[(0, 0, 0)], step=1)
    (kept,) = read_groups(file_of(tmp_path, 1))
    assert [answer.marks_s for answer in kept.answers] == [(2.0, 4.0), (), (2.0, 4.0)]
    assert read_summaries(file_of(tmp_path, 1))[0].unread == 1


def test_steps_that_are_not_due_or_not_wanted_are_not_written(tmp_path: Path) -> None:
    every_other = keeper(run(tmp_path, every=2))
    for step in range(1, 6):
        every_other.keep([group()], advantages=[(0, 0, 0)], step=step)
    assert list(kept_steps(tmp_path)) == [2, 4]
    keeper(run(tmp_path / "none", every=0)).keep([group()], advantages=[(0, 0, 0)], step=1)
    assert kept_steps(tmp_path / "none") == {}


def test_a_resumed_run_drops_what_it_does_again_and_a_fresh_one_all(tmp_path: Path) -> None:
    first = keeper(run(tmp_path))
    for step in (1, 2, 3):
        first.keep([group()], advantages=[(0, 0, 0)], step=step)
    keeper(run(tmp_path), resumed_at=2)
    assert list(kept_steps(tmp_path)) == [1, 2]
    keeper(run(tmp_path))
    assert kept_steps(tmp_path) == {}


def test_room_is_bounded_and_old_steps_are_thinned_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeper(run(tmp_path, most_mb=1))
    kept.keep([group()], advantages=[(0, 0, 0)], step=1)
    monkeypatch.setattr(
        "services.learner.watching.groups.MEGABYTE", 12 * file_of(tmp_path, 1).stat().st_size
    )
    for step in range(2, 200):
        kept.keep([group()], advantages=[(0, 0, 0)], step=step)
    steps = list(kept_steps(tmp_path))
    assert 8 <= len(steps) <= 12
    assert (steps[0], *steps[-3:]) == (1, 197, 198, 199), "the start, and the newest densely"
    assert any(20 < step < 150 for step in steps), steps


@pytest.mark.parametrize(
    ("steps", "goes"), [([1, 2], 1), ([1, 2, 3], 2), ([1, 5, 9, 10], 5), ([1, 2, 8, 9], 2)]
)
def test_what_goes_leaves_the_smallest_hole_for_its_age(steps: list[int], goes: int) -> None:
    assert least_missed(steps) == goes


def test_a_disk_that_takes_no_more_ends_the_keeping_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = keeper(run(tmp_path))
    (tmp_path / "groups").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            kept.keep([group()], advantages=[(0, 0, 0)], step=step)
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "groups are no longer kept for tempsamp dash"
    ]


def test_a_model_without_tokenizer_keeps_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "services.learner.watching.groups.fetched",
        lambda *_, **__: type("M", (), {"path": tmp_path}),
    )
    with caplog.at_level(logging.INFO):
        kept = keeper(run(tmp_path))
    kept.keep([group()], advantages=[(0, 0, 0)], step=1)
    assert kept_steps(tmp_path) == {}
    assert caplog.records[0].message == "groups are not kept: no tokenizer"


@pytest.mark.parametrize("content", [b"no gzip", b"", None])
def test_a_file_that_is_none_is_said_with_its_name(tmp_path: Path, content: bytes | None) -> None:
    keeper(run(tmp_path)).keep([group()], advantages=[(0, 0, 0)], step=4)
    path = file_of(tmp_path, 4)
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(ConfigError, match=r"step-000004\.jsonl\.gz.*wanted groups of a step"):
        read_summaries(path)
