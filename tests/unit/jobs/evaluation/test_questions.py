"""Annotations that can be asked, and those that cannot: each is asked, listed or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.messages import Mode, TextPart
from common.prompts import chat_messages, highlight_problem
from jobs.evaluation.questions import Asked, find_questions, parse_shard


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"x" * 10)
    return path


@pytest.fixture
def find(video: Path) -> Callable[[str], Path | None]:
    return lambda name: None if "missing" in name else video


def bench(path: Path, videos: dict[str, Any]) -> Path:
    path.write_text(json.dumps(videos))
    return path


def of_video(*spans: list[float], duration: float | None = 30.0) -> dict[str, Any]:
    queries = [f"Event {number}." for number in range(len(spans))]
    return {"duration": duration, "spans": list(spans), "queries": queries}


def highlights_row(
    qid: int, *, windows: list[list[float]] | None = None, duration: float | None = 10.0
) -> dict[str, Any]:
    return {
        "qid": qid,
        "query": "q",
        "vid": f"v{qid}",
        "duration": duration,
        "relevant_windows": [[1.0, 2.0]] if windows is None else windows,
    }


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text_of(asked: Asked, prompt: str, mode: str = "answer") -> str:
    (message,) = asked.messages(prompt, mode, task="moments")  # type: ignore[arg-type]
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def test_every_query_becomes_a_question(tmp_path: Path, find: Callable[[str], Path | None]) -> None:
    path = bench(tmp_path / "charades-timelens.json", {"a": of_video([1, 2], [3, 4])})
    found = find_questions(path, find=find)
    assert [asked.question.id for asked in found.asked] == ["a[0]", "a[1]"]
    assert found.asked[1].question.spans == ((3.0, 4.0),)
    assert "Event 1" in text_of(found.asked[1], "timelens")
    assert "Event 1." not in text_of(found.asked[1], "timelens")  # the official cleaning
    found.refuse_gaps()


def test_missing_videos_are_listed_and_refused(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    videos = {"a": of_video([1, 2]), "missing": of_video([1, 2], [3, 4])}
    found = find_questions(bench(tmp_path / "b.json", videos), find=find)
    assert len(found.asked) == 1
    assert found.missing == {"videos/missing.mp4": 2}
    with pytest.raises(ConfigError, match=r"1 videos of 2 queries.*missing\.mp4.*--allow-missing"):
        found.refuse_gaps()
    near = find_questions(
        bench(tmp_path / "b.json", videos), find=find, there=lambda: ["missing1.mkv"]
    )
    with pytest.raises(ConfigError, match=r"'videos/missing.mp4' \(nearest: 'missing1.mkv'\)"):
        near.refuse_gaps()


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ([[5.0, 2.0]], "not 0 <= start <= end"),
        ([[-1.0, 2.0]], "not 0 <= start <= end"),
        ([["1", 2.0]], "bad record"),
    ],
)
def test_an_impossible_truth_is_listed_and_refused(
    spans: list[list[float]], reason: str, tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    videos = {"a": of_video([1, 2]), "b": of_video(*spans)}
    found = find_questions(bench(tmp_path / "b.json", videos), find=find)
    assert len(found.asked) == 1
    assert len(found.unusable) == 1
    assert found.unusable[0].startswith("b[0]: ")
    assert reason in found.unusable[0]
    with pytest.raises(ConfigError, match="1 annotations that cannot be used"):
        found.refuse_gaps()


def test_nan_in_a_truth_is_listed_and_as_a_duration_is_no_duration(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    rows = [
        highlights_row(1, windows=[[float("nan"), 2.0]]),
        highlights_row(2, duration=float("nan")),
    ]
    found = find_questions(lines(tmp_path / "q.jsonl", rows), find=find)
    assert [asked.question.id for asked in found.asked] == ["2"]
    assert found.asked[0].question.duration_s is None
    assert found.unusable == ("line 1: the true spans ((nan, 2.0),) are no numbers",)


def test_a_document_with_nan_is_broken_from_there_on(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    videos = {"a": of_video([1, 2]), "b": of_video([float("nan"), 2.0]), "c": of_video([1, 2])}
    found = find_questions(bench(tmp_path / "b.json", videos), find=find)
    assert [asked.question.id for asked in found.asked] == ["a[0]"]
    assert "what follows was not read" in found.unusable[0]


@pytest.mark.parametrize("duration", [None, float("nan")])
def test_a_video_without_duration_comes_after_those_with_one(
    duration: float | None, tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    rows = [
        highlights_row(number, duration=seconds)
        for number, seconds in enumerate((duration, 5.0, 50.0))
    ]
    found = find_questions(lines(tmp_path / "q.jsonl", rows), find=find)
    ordered = sorted(found.asked, key=lambda asked: asked.longest_first)
    assert [asked.question.id for asked in ordered] == ["2", "1", "0"]
    assert ordered[-1].question.duration_s is None


def test_an_id_that_stands_twice_is_refused_with_both_places(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    path = lines(tmp_path / "q.jsonl", [highlights_row(7), highlights_row(7)])
    with pytest.raises(ConfigError, match=r"the id '7' at line 1 and at line 2"):
        find_questions(path, find=find)


def test_a_file_without_truth_is_refused(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    path = lines(tmp_path / "q.jsonl", [highlights_row(7, windows=[])])
    with pytest.raises(ConfigError, match=r"no annotation that can be asked.*no true span"):
        find_questions(path, find=find)
    with pytest.raises(ConfigError, match="no file for any of 1 videos"):
        find_questions(bench(tmp_path / "b.json", {"missing": of_video([1, 2])}), find=find)


def test_a_question_about_a_part_of_a_longer_file_is_asked(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    row = {"path": "a.mp4", "question": "q", "answer": "1.0-2.0", "duration": 10.0}
    part = row | {"start": 5.0, "end": 15.0}
    of_file = row | {"start": 5.0, "end": 9.0}
    bad = row | {"start": 5.0, "end": 5.0}
    path = tmp_path / "tvgbench.json"
    path.write_text(json.dumps([row, part, of_file, bad]))
    found = find_questions(path, find=find)
    asked = [(one.question.window, one.question.duration_s) for one in found.asked]
    assert asked == [(None, 10.0), ((5.0, 15.0), 10.0), ((5.0, 9.0), None)]
    (unusable,) = found.unusable
    assert unusable.startswith("[3]: bad window: found start_s 5.0 and end_s 5.0")


def test_a_trainer_row_is_asked_in_its_own_words_unless_a_protocol_has_others(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    problem = '<video>Find the event "a dog" in the video. Please provide the times.'
    row = {"problem": problem, "answer": "<answer> 1.0 to 2.0 </answer>", "videos": ["a.mp4"]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | {"query": "a dog"}) + "\n")
    (asked,) = find_questions(path, find=find).asked
    assert "<video>" + text_of(asked, "ours") == problem
    assert text_of(asked, "timelens").startswith("Please find the visual event")
    assert "a dog" in text_of(asked, "ours", "think")
    assert "<think>" in text_of(asked, "ours", "think")


RATINGS = {"relevant_clip_ids": [0, 4], "saliency_scores": [[1, 2, 3], [4, 4, 4]]}


@pytest.mark.parametrize("mode", ["answer", "think"])
def test_highlights_are_asked_for_with_the_query_as_prompts_have_it(
    mode: Mode, tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    row = highlights_row(7) | RATINGS | {"query": " a  dog."}
    (asked,) = find_questions(
        lines(tmp_path / "q.jsonl", [row]), find=find, task="highlights"
    ).asked
    wanted = chat_messages(highlight_problem("a dog", mode=mode))
    assert asked.messages("ours", mode, task="highlights") == wanted
    assert asked.question.clip_ids == (0, 4)
    assert asked.question.saliency == ((1.0, 2.0, 3.0), (4.0, 4.0, 4.0))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"relevant_clip_ids": [], "saliency_scores": []}, "no clip is rated"),
        ({"duration": None}, "the duration None counts no clips"),
        ({"duration": float("inf")}, "the duration inf counts no clips"),
        ({"relevant_clip_ids": [0, 5]}, "found a rating for clip 5, wanted clips 0 to 4"),
        ({"saliency_scores": [[1, 2], [4, 4, 4]]}, "found a clip without 3 ratings"),
    ],
)
def test_ratings_that_cannot_be_scored_are_listed_when_highlights_are_asked_for(
    changed: dict[str, Any], reason: str, tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    rows = [highlights_row(1) | RATINGS, highlights_row(2) | RATINGS | changed]
    path = lines(tmp_path / "q.jsonl", rows)
    found = find_questions(path, find=find, task="highlights")
    assert [asked.question.id for asked in found.asked] == ["1"]
    assert len(found.unusable) == 1
    assert found.unusable[0].startswith("line 2: ")
    assert reason in found.unusable[0]
    assert len(find_questions(path, find=find).asked) == 2


def test_shards_are_disjoint_whole_and_keep_clips_together(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    videos = {name: of_video([1, 2], [3, 4]) for name in "abcde"}
    found = find_questions(bench(tmp_path / "b.json", videos), find=find)
    shards = [[asked.question.id for asked in found.shard(k, 2)] for k in (1, 2)]
    assert sorted(shards[0] + shards[1]) == sorted(asked.question.id for asked in found.asked)
    assert not {one[0] for one in shards[0]} & {one[0] for one in shards[1]}


def test_a_limit_takes_the_first_queries_whose_videos_are_there(
    tmp_path: Path, find: Callable[[str], Path | None]
) -> None:
    videos = {"missing": of_video([1, 2]), "a": of_video([1, 2], [3, 4])}
    found = find_questions(bench(tmp_path / "b.json", videos), find=find, limit=1)
    assert [asked.question.id for asked in found.asked] == ["a[0]"]


def test_a_shard_is_i_of_n() -> None:
    assert parse_shard("2/3") == (2, 3)
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(ConfigError, match="--shard"):
            parse_shard(wrong)
