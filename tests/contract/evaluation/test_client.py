"""`Fleet`, `Replicas`, `Runner` against real HTTP: who is asked what, what becomes of trouble."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import EngineError
from common.messages import GenerateRequest
from common.video.frames import sample_clip
from common.video.sampling import VideoSampling
from jobs.asking.answers import Reply, one_version
from jobs.asking.replicas import Fleet, Replicas, connected, served
from jobs.evaluation.journal import Journal
from jobs.evaluation.questions import Asked
from jobs.evaluation.runner import Runner
from jobs.evaluation.scoring.matching import Question
from jobs.evaluation.scoring.predictions import PredictionRecord
from jobs.evaluation.settings import AnswerSampling, Checkpoint, RunSettings
from tests.fixtures.clips import make_clip
from tests.fixtures.replicas.stand_in_replica import (
    HangUpError,
    question_of,
    refuse,
    serving,
    unused_url,
)

ANSWER = "<answer> 1.00 to 2.00 </answer>"
SETTINGS = RunSettings(
    bench="rows",
    annotations_sha256="0" * 64,
    model=Checkpoint(name="tiny", sha256="1" * 64),
    mode="answer",
    prompt="ours",
    templates={"answer": "{query}"},
    sampling=AnswerSampling(max_tokens={"answer": 16, "think": 16}, num_samples=0, seed=0),
    clip=VideoSampling(min_pixels=1024, max_pixels=1024, factor=16),
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "a.mp4", num_frames=32)


def asked(video: Path, count: int, *, queries: Sequence[str] = ()) -> list[Asked]:
    """Queries about clips that get longer from one to the next."""
    texts = list(queries) or [f"query {number}" for number in range(count)]
    return [
        Asked(
            question=Question(
                id=str(number), video=f"v{number}.mp4", query=text, spans=((1.0, 2.0),)
            ),
            problem=None,
            video=video,
            longest_first=(-float(number), 0.0, f"v{number}"),
        )
        for number, text in enumerate(texts)
    ]


async def answered(
    asked_now: Sequence[Asked],
    *,
    urls: Sequence[str],
    folder: Path,
    concurrency: int = 4,
    retry_s: float = 20.0,
    settings: RunSettings = SETTINGS,
) -> list[PredictionRecord]:
    with Journal(folder, shard=(1, 1), fingerprint=settings.fingerprint) as journal:
        runner = Runner(
            settings,
            journals={"answer": journal},
            sample_clip=lambda path, window: sample_clip(
                path, sampling=settings.clip, window=window
            ),
            version=0,
            on_record=lambda _: None,
        )
        async with connected(urls, token=None) as clients:
            fleet = Fleet(clients, concurrency=concurrency, retry_s=retry_s)
            await runner.run(runner.jobs(asked_now), fleet=fleet)
        return journal.records()


def always(_: GenerateRequest) -> str:
    return ANSWER


async def test_a_slow_replica_holds_nobody_back(video: Path, tmp_path: Path) -> None:
    with serving(always, delay_s=0.5) as slow, serving(always, delay_s=0.01) as quick:
        records = await answered(
            asked(video, 40), urls=[slow.url, quick.url], folder=tmp_path, concurrency=2
        )
    assert len({record.id for record in records}) == len(records) == 40
    assert 0 < len(slow.requests) < len(quick.requests) / 2


async def test_work_is_bounded_in_each_replica(video: Path, tmp_path: Path) -> None:
    with serving(always, delay_s=0.1) as one, serving(always, delay_s=0.1) as two:
        await answered(asked(video, 24), urls=[one.url, two.url], folder=tmp_path, concurrency=3)
    assert (one.most_at_once, two.most_at_once) == (3, 3)


async def test_the_longest_clips_come_first(video: Path, tmp_path: Path) -> None:
    with serving(always) as replica:
        await answered(asked(video, 5), urls=[replica.url], folder=tmp_path, concurrency=1)
    assert [text.split('"')[1] for text in replica.questions] == [
        f"query {number}" for number in (4, 3, 2, 1, 0)
    ]


async def test_a_window_is_asked_about_alone(video: Path, tmp_path: Path) -> None:
    whole, part, missing = asked(video, 3)
    part = replace(part, question=replace(part.question, window=(1.0, 3.0), video="v0.mp4"))
    missing = replace(missing, question=replace(missing.question, window=(39.0, 84.7)))
    with serving(always) as replica:
        records = await answered([whole, part, missing], urls=[replica.url], folder=tmp_path)
    by_id = {record.id: record for record in records}
    assert [by_id[key].window_s for key in "012"] == [None, (1.0, 3.0), (39.0, 84.7)]
    assert [by_id[key].duration_s for key in "01"] == [4.0, 2.0]
    assert by_id["2"].failure == "video"
    assert "wanted 39.00 to 84.70 s of it" in (by_id["2"].error or "")
    clips = {request.clip.window_s: request.clip for request in replica.requests}
    assert set(clips) == {None, (1.0, 3.0)}
    assert clips[1.0, 3.0].frame_indices[0] == 8
    assert clips[1.0, 3.0].frame_times_s[0] == 0.0


async def test_what_a_dying_replica_had_in_work_goes_to_the_others(
    video: Path, tmp_path: Path
) -> None:
    def hang_up(_: GenerateRequest) -> str:
        raise HangUpError

    with serving(hang_up, delay_s=0.05) as dying, serving(always, delay_s=0.05) as living:
        records = await answered(
            asked(video, 12), urls=[unused_url(), dying.url, living.url], folder=tmp_path
        )
    assert dying.requests
    assert len(records) == 12
    assert {record.failure for record in records} == {None}


async def test_a_question_that_breaks_every_replica_is_given_up_and_the_rest_is_answered(
    video: Path, tmp_path: Path
) -> None:
    def answer(request: GenerateRequest) -> str:
        if "poison" in question_of(request):
            raise HangUpError
        return ANSWER

    queries = ["before", "poison", "after"]
    with serving(answer) as one, serving(answer) as two:
        records = await answered(
            asked(video, 3, queries=queries), urls=[one.url, two.url], folder=tmp_path
        )
    failures = {record.query: record.failure for record in records}
    assert failures == {"before": None, "poison": "engine", "after": None}
    (error,) = [record.error for record in records if record.error]
    assert "3 times" in error
    assert sum("poison" in text for text in one.questions + two.questions) == 3


async def test_when_nobody_can_be_reached_the_run_ends_in_bounded_time(
    video: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"nobody answered within 1 s.*ConnectError"):
        await answered(
            asked(video, 3), urls=[unused_url(), unused_url()], folder=tmp_path, retry_s=1.0
        )


async def test_a_loading_replica_is_waited_for(video: Path, tmp_path: Path) -> None:
    loading = iter(range(2))

    def answer(_: GenerateRequest) -> str:
        return ANSWER if next(loading, None) is None else refuse(503, "still loading")

    with serving(answer) as replica:
        records = await answered(asked(video, 1), urls=[replica.url], folder=tmp_path)
    assert (len(replica.requests), records[0].text) == (3, ANSWER)


async def test_refusals_are_failures_of_the_kind_the_replica_names(
    video: Path, tmp_path: Path
) -> None:
    def answer(request: GenerateRequest) -> str:
        if "broken" in question_of(request):
            return refuse(422, "cannot decode", field="clip")
        return refuse(422, "prompt too long") if "long" in question_of(request) else ANSWER

    with serving(answer) as replica:
        records = await answered(
            asked(video, 3, queries=["broken", "long", "fine"]), urls=[replica.url], folder=tmp_path
        )
    assert {record.query: (record.failure, record.text) for record in records} == {
        "broken": ("video", None),
        "long": ("engine", None),
        "fine": (None, ANSWER),
    }
    assert "cannot decode" in next(r.error or "" for r in records if r.query == "broken")


async def test_a_file_that_is_no_video_is_a_video_failure_and_nobody_is_asked(
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    with serving(always) as replica:
        records = await answered(asked(broken, 2), urls=[replica.url], folder=tmp_path / "out")
    assert [record.failure for record in records] == ["video", "video"]
    assert replica.requests == []


async def test_refusal_after_refusal_ends_the_run(video: Path, tmp_path: Path) -> None:
    with (
        serving(lambda _: refuse(422, "wrong factor")) as replica,
        pytest.raises(EngineError, match=r"20 questions in a row refused.*wrong factor"),
    ):
        await answered(asked(video, 60), urls=[replica.url], folder=tmp_path)
    assert len(replica.requests) < 40


async def test_answers_of_other_weights_end_the_run(video: Path, tmp_path: Path) -> None:
    with (
        serving(always) as one,
        serving(always, version=7) as other,
        pytest.raises(EngineError, match=r"weight versions \[7\], wanted 0"),
    ):
        await answered(asked(video, 30), urls=[one.url, other.url], folder=tmp_path, concurrency=1)


async def test_failures_are_asked_again_and_answers_are_not(video: Path, tmp_path: Path) -> None:
    with serving(lambda _: refuse(422, "no")) as replica:
        await answered(asked(video, 2), urls=[replica.url], folder=tmp_path)
    with serving(always) as replica:
        records = await answered(asked(video, 3), urls=[replica.url], folder=tmp_path)
        again = await answered(asked(video, 3), urls=[replica.url], folder=tmp_path)
    assert len(replica.requests) == 3
    assert [record.failure for record in records] == [None] * 3
    assert again == records


async def test_a_duration_that_is_not_annotated_is_the_clips_own(
    video: Path, tmp_path: Path
) -> None:
    with serving(always) as replica:
        (record,) = await answered(asked(video, 1), urls=[replica.url], folder=tmp_path)
    assert record.duration_s == pytest.approx(4.0)


async def asked_in_turn(video: Path, *, urls: Sequence[str], retry_s: float) -> list[Reply]:
    request = GenerateRequest(
        clip=sample_clip(video, sampling=SETTINGS.clip),
        messages=asked(video, 1)[0].messages("ours", "answer", task="moments"),
    )
    async with connected(urls, token=None) as clients:
        replicas = Replicas(clients, concurrency=1, retry_s=retry_s)
        return [await replicas.generate(request) for _ in range(3)]


async def test_who_is_asked_in_turn_may_be_dead_or_loading(video: Path) -> None:
    loading = iter(range(2))

    def answer(_: GenerateRequest) -> str:
        return ANSWER if next(loading, None) is None else refuse(503, "still loading")

    with serving(answer) as replica:
        replies = await asked_in_turn(video, urls=[unused_url(), replica.url], retry_s=20.0)
    assert [reply.answers[0].text for reply in replies] == [ANSWER] * 3


async def test_asking_in_turn_ends_in_bounded_time_and_says_meanwhile_who_is_silent(
    video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EngineError, match=r"nobody answered within 1 s.*ConnectError"):
        await asked_in_turn(video, urls=[url := unused_url()], retry_s=1.0)
    assert caplog.messages[0].startswith(f"no answer from {url} (ConnectError: ")
    assert len(caplog.messages) == 1


async def test_answers_of_two_weight_versions_are_not_one_result(video: Path) -> None:
    with serving(always, version=3) as one, serving(always) as other:
        replies = await asked_in_turn(video, urls=[one.url, other.url], retry_s=1.0)
    assert one_version(replies[::2]) == 3
    with pytest.raises(EngineError, match=r"weight versions \[0, 3\], wanted one"):
        one_version(replies)


async def test_the_weights_are_those_of_the_first_replica_that_is_ready() -> None:
    with serving(always, version=3, run_tag="5f3a1c") as replica:
        async with connected([unused_url(), replica.url], token=None) as clients:
            assert await served(clients) == (3, "5f3a1c")
    with serving(always, version=None) as waiting:
        async with connected([waiting.url], token=None) as clients:
            assert await served(clients) == (0, None)
    async with connected([unused_url()], token=None) as clients:
        with pytest.raises(EngineError, match=r"within 1 s.*--endpoint"):
            await served(clients, retry_s=1.0)
