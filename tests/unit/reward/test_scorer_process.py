"""Foreign scorers in child processes: results, deadlines that stop them, no process left behind."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from services.reward.scorer_process import (
    MAX_CALLERS,
    ScorerBusy,
    ScorerFailed,
    ScorerPool,
    ScorerProcess,
)

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 1.0


def score(process: ScorerProcess, response: str) -> dict[str, object]:
    result = process.call({"op": "score", "item": {"task": "misbehaves"}, "response": response})
    assert isinstance(result, dict)
    return result


def num_children() -> int:
    return len(psutil.Process().children(recursive=True))


@pytest.fixture
def process(scorer_packages: object) -> Iterator[ScorerProcess]:
    process = ScorerProcess("misbehaves", timeout_s=TIMEOUT_S)
    yield process
    process.close()


def test_a_result_comes_back_and_the_child_is_kept(process: ScorerProcess) -> None:
    first, second = score(process, "pid"), score(process, "pid")
    assert first["reward"] == 1.0
    assert first == second


def test_what_the_scorer_prints_does_not_disturb_the_protocol(process: ScorerProcess) -> None:
    assert score(process, "print")["reward"] == 0.5


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("raise", "error: LookupError: no such thing"),
        ("nan", "error: ValueError: found nan, wanted a finite number"),
        ("text", "error: ValueError: could not convert"),
        ("object", "error: TypeError: Object of type function is not JSON serializable"),
        ("die", "error: the scorer's process died"),
    ],
)
def test_a_broken_call_says_why_and_the_next_one_works(
    process: ScorerProcess, response: str, reason: str
) -> None:
    with pytest.raises(ScorerFailed, match=reason):
        score(process, response)
    assert score(process, "fine")["reward"] == 0.5


@pytest.mark.parametrize("response", ["sleep", "hold"])
def test_a_call_that_never_ends_is_killed_at_its_time_limit(
    process: ScorerProcess, response: str
) -> None:
    score(process, "fine")
    children = num_children()
    started = time.monotonic()
    with pytest.raises(ScorerFailed, match=r"timeout: the scorer took over 1\.0 s"):
        score(process, response)
    assert time.monotonic() - started < TIMEOUT_S + 5
    assert num_children() == children - 1
    assert score(process, "fine")["reward"] == 0.5


def test_a_megabyte_goes_in_and_comes_back(process: ScorerProcess) -> None:
    assert score(process, "x" * 10**6)["reward"] == 0.5


def test_a_scorer_that_cannot_be_imported_fails_with_a_reason(scorer_packages: object) -> None:
    process = ScorerProcess("cannot_be_imported", timeout_s=TIMEOUT_S)
    with pytest.raises(ScorerFailed, match="error: the scorer's process died"):
        score(process, "fine")
    process.close()


def test_close_leaves_no_child(scorer_packages: object) -> None:
    before = num_children()
    process = ScorerProcess("misbehaves", timeout_s=TIMEOUT_S)
    score(process, "fine")
    assert num_children() == before + 1
    process.close()
    assert num_children() == before


def test_a_child_ends_itself_when_its_parent_was_killed_during_a_call(
    scorer_packages: Path,
) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(scorer_packages)!r}, {str(ROOT)!r}]\n"
        "from services.reward.scorer_process import ScorerProcess\n"
        "process = ScorerProcess('misbehaves', timeout_s=1.0)\n"
        "item = {'task': 'misbehaves'}\n"
        "process.call({'op': 'score', 'item': item, 'response': 'fine'})\n"
        "print('called', flush=True)\n"
        "process.call({'op': 'score', 'item': item, 'response': 'hold'})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"called\n"
        time.sleep(0.2)
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive


def test_a_pool_lends_each_process_to_one_at_a_time(scorer_packages: object) -> None:
    pool = ScorerPool("event_count", processes=1, timeout_s=TIMEOUT_S)
    assert pool.injects is None
    with pool.lend(wait_s=1) as process:
        item = {"target": {"text": "3"}}
        answer = process.call({"op": "answer", "item": item})
        with pytest.raises(ScorerFailed, match="unavailable"), pool.lend(wait_s=0.01):
            pass
    assert answer == "<answer> 3 </answer>"
    assert pool.injects is True
    pool.close()


def test_a_pool_refuses_more_callers_than_it_may_hold(scorer_packages: object) -> None:
    pool = ScorerPool("event_count", processes=1, timeout_s=TIMEOUT_S)

    def wait(_: int) -> str:
        try:
            with pool.lend(wait_s=1.0):
                time.sleep(1.2)
        except (ScorerBusy, ScorerFailed) as error:
            return type(error).__name__
        return "lent"

    with ThreadPoolExecutor(MAX_CALLERS + 4) as threads:
        outcomes = list(threads.map(wait, range(MAX_CALLERS + 4)))
    assert outcomes.count("lent") == 1
    assert outcomes.count("ScorerBusy") == 4
    assert outcomes.count("ScorerFailed") == MAX_CALLERS - 1
