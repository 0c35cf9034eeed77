"""One JSON object a line."""

import datetime
import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, QueueError
from common.logs import (
    LONGEST_CHARS,
    LastProblem,
    NowAndThen,
    configure,
    critical_end,
    speaking,
)


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    ours = [logging.getLogger(name) for name in ("common", "services", "jobs")]
    levels = [logger.level for logger in ours]
    yield
    root.handlers[:], root.level = handlers, level
    for logger, before in zip(ours, levels, strict=True):
        logger.setLevel(before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_has_the_common_fields_and_the_extras() -> None:
    stream = io.StringIO()
    configure("learner", run_id="demo", stream=stream)
    extras = {"step": 3, "prompt_id": "p1", "loss": 0.5}
    logging.getLogger("services.learner.train").info("step %s", "done", extra=extras)
    [line] = lines(stream)
    when = datetime.datetime.fromisoformat(line.pop("ts"))
    assert abs(when.timestamp() - datetime.datetime.now(datetime.UTC).timestamp()) < 5
    assert line == {
        "level": "info",
        "service": "learner",
        "run_id": "demo",
        "logger": "services.learner.train",
        "event": "step done",
        "step": 3,
        "prompt_id": "p1",
        "loss": 0.5,
    }


def test_constants_are_on_every_line_and_extras_cannot_overwrite_them() -> None:
    stream = io.StringIO()
    configure("rollout", run_id="demo", replica="a", stream=stream)
    logging.getLogger("services").info("one")
    logging.getLogger("services").info("two", extra={"replica": "b", "service": "reward"})
    assert [(line["service"], line["replica"]) for line in lines(stream)] == [("rollout", "a")] * 2


def test_exception_stays_on_one_line() -> None:
    stream = io.StringIO()
    configure("rollout", run_id="demo", stream=stream)
    try:
        int("two\nlines")
    except ValueError:
        logging.getLogger("services").exception("failed", extra={"path": Path("a.mp4")})
    [line] = lines(stream)
    assert line["level"] == "error"
    assert line["path"] == "a.mp4"
    assert "Traceback" in line["exception"]
    assert "\nValueError: " in line["exception"]


def test_libraries_speak_from_warning_on() -> None:
    stream = io.StringIO()
    configure("reward", run_id="demo", stream=stream)
    logging.getLogger("httpx").info("request")
    logging.getLogger("httpx").warning("slow")
    logging.getLogger("common.queue.broker").info("ours")
    assert [line["event"] for line in lines(stream)] == ["slow", "ours"]


def test_configuring_again_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("reward", run_id="demo", stream=first)
    configure("reward", run_id="demo", stream=second, level=logging.WARNING)
    logging.getLogger("services").info("quiet")
    logging.getLogger("services").warning("loud")
    assert first.getvalue() == ""
    assert [line["event"] for line in lines(second)] == ["loud"]


def test_the_last_problem_is_remembered_with_its_reason() -> None:
    last = LastProblem()
    logger = logging.getLogger("tests.last_problem")
    logger.addHandler(last)
    try:
        logger.info("nothing")
        assert last.at_s is None
        logger.warning("prompt failed", extra={"error": "no frames"})
        assert (last.event, last.error) == ("prompt failed", "no frames")
        logger.error("crashed", exc_info=ValueError("x" * 1000))
        assert last.event == "crashed"
        assert last.error is not None
        assert last.error.startswith("ValueError: xxx")
        assert len(last.error) == LONGEST_CHARS
    finally:
        logger.removeHandler(last)


@pytest.mark.parametrize(
    ("error", "said", "traces"),
    [(QueueError("away"), "away", False), (KeyError("x"), "KeyError: 'x'", True)],
)
def test_a_service_that_fails_has_a_last_line_and_a_traceback_of_what_nobody_foresaw(
    error: Exception, said: str, traces: bool
) -> None:
    stream = io.StringIO()
    configure("learner", run_id="r", stream=stream)
    with pytest.raises(type(error)), critical_end("learner failed"):
        raise error
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["error"]) == ("critical", "learner failed", said)
    assert ("exception" in line) is traces


def test_a_wrong_setting_is_no_failure_of_a_service() -> None:
    stream = io.StringIO()
    configure("learner", run_id="r", stream=stream)
    with pytest.raises(ConfigError), critical_end("learner failed"):
        raise ConfigError("learner.rows: not there")
    assert stream.getvalue() == ""


def test_a_word_is_due_at_once_or_after_a_silence_and_then_now_and_then() -> None:
    word = NowAndThen(60.0)
    assert [word.is_due() for _ in range(3)] == [True, False, False]
    assert not NowAndThen(60.0, first_s=60.0).is_due()
    often = NowAndThen(0.0)
    assert often.is_due()
    assert often.is_due()


def test_a_long_call_is_spoken_of_until_it_ends() -> None:
    said: list[float] = []
    with speaking(said.append, every_s=0.01):
        deadline_s = time.monotonic() + 20
        while len(said) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    count = len(said)
    assert count >= 2
    assert 0 < said[0] < said[1]
    time.sleep(0.05)
    assert len(said) == count
