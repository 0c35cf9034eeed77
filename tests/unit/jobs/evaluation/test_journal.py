"""predictions.jsonl across interruptions, shards and settings that changed."""

from pathlib import Path

import pytest

from common.errors import ConfigError, OutputError
from common.video.sampling import VideoSampling
from jobs.evaluation.journal import Journal, read_records
from jobs.evaluation.scoring.predictions import PredictionRecord, read_predictions
from jobs.evaluation.settings import (
    AnswerSampling,
    Checkpoint,
    RunSettings,
    agree_or_refuse,
    checkpoint_digest,
)
from tests.fixtures.servers.places import no_room

SETTINGS = RunSettings(
    bench="charades-timelens",
    annotations_sha256="0" * 64,
    model=Checkpoint(name="ckpt", sha256="1" * 64),
    mode="answer",
    prompt="ours",
    templates={"answer": "{query}"},
    sampling=AnswerSampling(max_tokens={"answer": 512, "think": 2048}, num_samples=0, seed=0),
    clip=VideoSampling(),
)


def record(id: str, *, failed: bool = False, fingerprint: str = "f") -> PredictionRecord:
    return PredictionRecord(
        id=id,
        video="a.mp4",
        query="q",
        gt=((1.0, 2.0),),
        mode="answer",
        text=None if failed else "1 to 2",
        failure="engine" if failed else None,
        error="broke" if failed else None,
        fingerprint=fingerprint,
    )


def journal(folder: Path, *, shard: tuple[int, int] = (1, 1), fingerprint: str = "f") -> Journal:
    return Journal(folder, shard=shard, fingerprint=fingerprint)


def test_a_line_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(record("1"))
        assert [one.id for one in read_records(tmp_path)] == ["1"]
    assert len(read_predictions(tmp_path / "predictions.jsonl").predictions) == 1


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_cut_last_line_is_dropped_and_asked_again(
    cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with journal(tmp_path) as opened:
        for id in "12":
            opened.append(record(id))
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with journal(tmp_path) as again:
        # Of a line that only lacks its end nothing is lost.
        assert again.answered == ({"1", "2"} if cut == 1 else {"1"})
        assert ("torn last line left out" in caplog.messages) == (cut > 1)
        if cut > 1:
            again.append(record("2"))
    assert [one.id for one in read_records(tmp_path)] == ["1", "2"]


def test_a_broken_line_in_the_middle_is_refused_with_its_place(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(record("1"))
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": nonsense\n' + path.read_text())
    with pytest.raises(
        ConfigError, match=r"predictions\.jsonl: line 1: found '\{\"id\": nonsense'"
    ):
        journal(tmp_path)


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(record("1"))
        opened.append(record("1"))
    with pytest.raises(ConfigError, match="found '1' twice"):
        read_records(tmp_path)


def test_failures_are_left_to_be_asked_again(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(record("1", failed=True))
        opened.append(record("2"))
    with journal(tmp_path) as again:
        assert again.answered == {"2"}
        again.append(record("1"))
    assert {one.id: one.failure for one in read_records(tmp_path)} == {"1": None, "2": None}


def test_answers_of_another_run_are_refused(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(record("1"))
    with pytest.raises(ConfigError, match=r"fingerprint f, wanted g.*another --out"):
        journal(tmp_path, fingerprint="g")


def test_two_processes_do_not_write_one_file_but_two_shards(tmp_path: Path) -> None:
    with journal(tmp_path):
        with pytest.raises(ConfigError, match="--shard"):
            journal(tmp_path)
        with journal(tmp_path, shard=(2, 2)) as other:
            other.append(record("2"))
    journal(tmp_path).__exit__()


def test_shards_are_read_together_and_nobody_asks_anothers_questions(tmp_path: Path) -> None:
    for index in (1, 2):
        with journal(tmp_path, shard=(index, 2)) as opened:
            opened.append(record(str(index)))
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        "predictions-1-of-2.jsonl",
        "predictions-2-of-2.jsonl",
    ]
    assert [one.id for one in read_records(tmp_path)] == ["1", "2"]
    with journal(tmp_path) as whole:
        assert whole.answered == {"1", "2"}


def test_the_same_settings_agree(tmp_path: Path) -> None:
    agree_or_refuse(tmp_path / "run", settings=SETTINGS)
    renamed = SETTINGS.model_copy(
        update={"model": Checkpoint(name="org/moved", commit="2" * 40, sha256="1" * 64)}
    )
    agree_or_refuse(tmp_path / "run", settings=renamed)
    assert renamed.fingerprint == SETTINGS.fingerprint


def test_other_settings_are_refused_with_every_difference(tmp_path: Path) -> None:
    agree_or_refuse(tmp_path, settings=SETTINGS)
    sampling = SETTINGS.sampling.model_copy(update={"max_tokens": {"answer": 64, "think": 2048}})
    changed = SETTINGS.model_copy(
        update={"sampling": sampling, "clip": VideoSampling(fps=1.0), "prompt": "timelens"}
    )
    assert changed.fingerprint != SETTINGS.fingerprint
    with pytest.raises(ConfigError) as refused:
        agree_or_refuse(tmp_path, settings=changed)
    lines = [line.strip() for line in str(refused.value).splitlines()]
    assert lines[1:-1] == [
        "clip.fps: found 2.0, wanted 1.0",
        "prompt: found 'ours', wanted 'timelens'",
        "sampling.max_tokens.answer: found 512, wanted 64",
    ]


def test_a_checkpoint_is_its_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
    assert checkpoint_digest(one) == checkpoint_digest(two)
    for name in ("README.md", "LICENSE", "pytorch_model.bin"):
        (two / name).write_text("nothing is loaded from it")
    assert checkpoint_digest(one) == checkpoint_digest(two)
    (two / "model.safetensors").write_bytes(b"other weights")
    assert checkpoint_digest(one) != checkpoint_digest(two)
    with pytest.raises(ConfigError, match=r"--model: found no .*config\.json"):
        checkpoint_digest(tmp_path)


def test_a_full_disk_keeps_the_answers_before_it_and_the_run_goes_on(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(record("1"))
        size = (tmp_path / "predictions.jsonl").stat().st_size
        with (
            no_room(size + 10),
            pytest.raises(OutputError, match=r"--out: .*MB free\).*goes on"),
        ):
            opened.append(record("2"))
    assert [one.id for one in read_records(tmp_path)] == ["1"]
    with journal(tmp_path) as again:
        assert again.answered == {"1"}
        again.append(record("2"))
    assert [one.id for one in read_records(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\0\0", b'{"model": 1}'])
def test_settings_that_cannot_be_read_are_named_with_the_way_out(
    content: bytes, tmp_path: Path
) -> None:
    agree_or_refuse(tmp_path, settings=SETTINGS)
    agree_or_refuse(tmp_path, settings=SETTINGS)
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings\.json: found no settings .*another --out"):
        agree_or_refuse(tmp_path, settings=SETTINGS)


def test_damage_in_the_middle_is_named_with_the_way_out(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        for name in "ab":
            opened.append(record(name))
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    with pytest.raises(ConfigError, match=r"predictions\.jsonl: line 1: .*; take that line out"):
        journal(tmp_path)
