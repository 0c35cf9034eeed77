"""Files are read beside the steps: once, in the order in which they are wanted."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from common.errors import VideoError
from common.messages import ClipRef, SpansTarget
from common.rows import Row
from services.learner.curriculum.lookahead import FILES_AT_ONCE, LookAhead
from tests.fixtures.wire import CLIP


class Files:
    """Stands for a `ClipLoader` on a slow disk."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.threads: set[str] = set()
        self.may_go_on = threading.Event()
        self.has_begun = threading.Semaphore(0)

    def sample(self, path: str, window: object = None) -> ClipRef:
        self.read.append(path)
        self.threads.add(threading.current_thread().name)
        self.has_begun.release()
        assert self.may_go_on.wait(30)
        if path == "broken.mp4":
            raise VideoError("broken.mp4: no video stream")
        return CLIP.model_copy(update={"uri": path})


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def ahead(files: Files) -> Iterator[LookAhead]:
    loader: Any = files
    ahead = LookAhead(loader)
    yield ahead
    files.may_go_on.set()
    ahead.close()


def row(name: str) -> Row:
    return Row(
        row_id=name,
        video=f"{name}.mp4",
        problem="<video>when",
        query=None,
        target=SpansTarget(spans=((1.0, 2.0),)),
    )


def test_an_expected_file_is_read_once_and_waited_for(files: Files, ahead: LookAhead) -> None:
    ahead.expect([row("a")])
    assert files.has_begun.acquire(timeout=30), "before anybody asks"
    files.may_go_on.set()
    assert ahead.clip_of(row("a")).uri == "a.mp4"
    assert files.read == ["a.mp4"]
    assert all(name.startswith("lookahead") for name in files.threads)


def test_any_other_is_read_when_it_is_asked_for(files: Files, ahead: LookAhead) -> None:
    files.may_go_on.set()
    assert ahead.clip_of(row("b")).uri == "b.mp4"
    assert files.threads == {threading.current_thread().name}


def test_what_is_expected_again_is_not_read_again(files: Files, ahead: LookAhead) -> None:
    files.may_go_on.set()
    ahead.expect([row("a"), row("b")])
    ahead.expect([row("b"), row("c")])
    assert [ahead.clip_of(row(name)).uri for name in "bc"] == ["b.mp4", "c.mp4"]
    assert files.read.count("b.mp4") == 1


def test_a_file_that_nobody_expects_any_more_is_not_begun(files: Files, ahead: LookAhead) -> None:
    busy = [row(f"busy{number}") for number in range(FILES_AT_ONCE)]
    ahead.expect([*busy, row("late")])
    for _ in busy:
        assert files.has_begun.acquire(timeout=30)
    ahead.expect([row("next")])
    files.may_go_on.set()
    assert ahead.clip_of(row("next")).uri == "next.mp4"
    assert "late.mp4" not in files.read


def test_a_file_that_cannot_be_used_is_an_error_of_its_row(files: Files, ahead: LookAhead) -> None:
    files.may_go_on.set()
    ahead.expect([row("broken"), row("a")])
    with pytest.raises(VideoError, match="no video stream"):
        ahead.clip_of(row("broken"))
    assert ahead.clip_of(row("a")).uri == "a.mp4"
