"""Reward functions of docs/integrations.md, called as their trainers call them, at a live server.

Their calls are those of TRL 1.16.0 (`GRPOTrainer._calculate_rewards`), verl 0.9.1
(`NaiveRewardManager.run_single`) and 0.6.1 (`BatchRewardManager.verify`), EasyR1 b44b311
(`BatchFunctionRewardManagerMixin.compute_reward_batch`) and ms-swift 4.6.0
(`compute_rewards_per_func`).
"""

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.fixtures.servers.reward_server import RewardServer, reward_server

PAGE = (Path(__file__).parents[3] / "docs/integrations.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## (\S+)\n.*?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE: dict[str, str] = dict(SECTION.findall(PAGE))
ADDRESS = "http://127.0.0.1:8100"
TOKEN = "sesame"
TASK = '"temporal_grounding"'
MAX_LINES = 20
PERFECT = 0.8018232155679395 + 0.1
HALF = 0.5963903232976884 + 0.1
NOTHING = 0.08676372630237683
"""Shaped IoU 1, .5 and 0, the first two in the wanted format (docs/reward-api.md)."""
TEXTS = ["<answer> 7.0 to 11.0 </answer>", "<answer> 21.0 to 23.0 </answer>", "no idea"]
SPANS = [[[7.0, 11.0]], [[20.0, 24.0]], [[20.0, 24.0]]]
TRUTHS = [f"<answer> {start} to {end} </answer>" for ((start, end),) in SPANS]

Call = Callable[[dict[str, Any], list[str], list[Any], list[str]], list[Any]]


def by_trl(scope: dict[str, Any], texts: list[str], spans: list[Any], _: list[str]) -> list[Any]:
    """Messages as completions; columns and the trainer's own arguments by keyword."""
    rewards: list[Any] = scope["tempsamp_reward"](
        prompts=[[{"role": "user", "content": "When?"}] for _ in texts],
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[[1] for _ in texts],
        spans=spans,
        duration=[60.0 for _ in texts],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    )
    return rewards


def by_trl_with_text(
    scope: dict[str, Any], texts: list[str], spans: list[Any], _: list[str]
) -> list[Any]:
    """Prompts that are text have completions that are text."""
    prompts = ["When?" for _ in texts]
    ids = [[1] for _ in texts]
    rewards: list[Any] = scope["tempsamp_reward"](
        prompts=prompts, completions=texts, completion_ids=ids, spans=spans
    )
    return rewards


def by_verl(scope: dict[str, Any], texts: list[str], _: list[Any], truths: list[str]) -> list[Any]:
    """One answer a call."""
    return [
        scope["compute_score"](
            data_source="timelens",
            solution_str=text,
            ground_truth=truth,
            extra_info={"num_turns": None, "rollout_reward_scores": {}},
        )["score"]
        for text, truth in zip(texts, truths, strict=True)
    ]


def by_verl_batch(
    scope: dict[str, Any], texts: list[str], _: list[Any], truths: list[str]
) -> list[Any]:
    """One call a batch."""
    scores = scope["compute_score_batch"](
        data_sources=["timelens" for _ in texts],
        solution_strs=texts,
        ground_truths=truths,
        extra_infos=[{"rollout_reward_scores": {}} for _ in texts],
    )
    return [score["score"] for score in scores]


def by_easyr1(
    scope: dict[str, Any], texts: list[str], _: list[Any], truths: list[str]
) -> list[Any]:
    """One dictionary an answer."""
    inputs = [
        {"response": text, "response_length": 9, "ground_truth": truth}
        for text, truth in zip(texts, truths, strict=True)
    ]
    return [score["overall"] for score in scope["compute_score"](inputs)]


def by_swift(scope: dict[str, Any], texts: list[str], spans: list[Any], _: list[str]) -> list[Any]:
    """Made by name from `orms`; completions by position, columns by keyword."""
    reward = scope["orms"]["tempsamp"](args=None)
    rewards: list[Any] = reward(texts, trainer_state=None, spans=spans, request_id=["r"] * 3)
    return rewards


CALLS: dict[str, tuple[str, Call]] = {
    "trl": ("TRL", by_trl),
    "trl-text": ("TRL", by_trl_with_text),
    "verl": ("verl", by_verl),
    "verl-batch": ("verl", by_verl_batch),
    "easyr1": ("EasyR1", by_easyr1),
    "ms-swift": ("ms-swift", by_swift),
}
trainers = pytest.mark.parametrize("trainer", CALLS)


@pytest.fixture(scope="module")
def server(scorer_packages_dir: Path) -> Iterator[RewardServer]:
    """With a token, and a scorer that breaks when an answer says so."""
    environ = {"TEMPSAMP_TOKEN": TOKEN, "PYTHONPATH": str(scorer_packages_dir)}
    with reward_server(environ=environ) as server:
        yield server


@pytest.fixture(autouse=True)
def _swift_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `swift/rewards/orm.py` of 4.6.0 says of ORM and orms."""

    class ORM:
        def __init__(self, args: Any = None, **kwargs: Any) -> None:
            self.args = args

    swift, rewards = ModuleType("swift"), ModuleType("swift.rewards")
    vars(rewards).update(ORM=ORM, orms={})
    monkeypatch.setitem(sys.modules, "swift", swift)
    monkeypatch.setitem(sys.modules, "swift.rewards", rewards)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPSAMP_TOKEN", TOKEN)


def scope_of(section: str, *, url: str, task: str = TASK) -> dict[str, Any]:
    """Names that a snippet defines, with another address and task."""
    scope: dict[str, Any] = {}
    code = CODE[section].replace(ADDRESS, url).replace(TASK, task)
    exec(compile(code, f"docs/integrations.md: {section}", "exec"), scope)
    return scope


def ask(trainer: str, *, url: str, texts: list[str] = TEXTS, task: str = TASK) -> list[Any]:
    """Rewards of answers, as a trainer asks for them."""
    section, call = CALLS[trainer]
    scope = scope_of(section, url=url, task=task)
    try:
        return call(scope, texts, SPANS[: len(texts)], TRUTHS[: len(texts)])
    finally:
        scope["service"].close()


def num_requests(server: RewardServer) -> int:
    """Scoring requests that the server has answered."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    text = httpx.get(f"{server.url}/metrics", headers=headers, trust_env=False).text
    counts = re.findall(r"request_seconds_count\{.*?/v1/score.*?\} (\S+)", text)
    return int(sum(map(float, counts)))


def test_page_has_a_short_function_for_each_trainer() -> None:
    assert set(CODE) == {section for section, _ in CALLS.values()}
    for code in CODE.values():
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= MAX_LINES
        assert max(map(len, lines)) <= 100


@trainers
def test_answers_of_several_prompts_get_their_shaped_rewards(
    server: RewardServer, trainer: str
) -> None:
    before = num_requests(server)
    assert ask(trainer, url=server.url) == pytest.approx([PERFECT, HALF, NOTHING])
    assert num_requests(server) - before == (3 if trainer == "verl" else 1)


def test_without_shaping_rewards_are_iou_and_format(server: RewardServer) -> None:
    for trainer, (section, call) in CALLS.items():
        code = CODE[section].replace(', "shaping": {"kind": "nonlinear"}', "")
        assert code != CODE[section]
        scope: dict[str, Any] = {}
        exec(compile(code.replace(ADDRESS, server.url), trainer, "exec"), scope)
        assert call(scope, TEXTS, SPANS, TRUTHS) == pytest.approx([1.1, 0.6, 0.0])
        scope["service"].close()


@trainers
def test_refused_request_raises_with_the_words_of_the_service(
    server: RewardServer, trainer: str
) -> None:
    with pytest.raises(RuntimeError, match=r"items\.0\.task: found 'juggling', wanted one of"):
        ask(trainer, url=server.url, task='"juggling"')


@trainers
def test_wrong_token_raises_with_the_words_of_the_service(
    server: RewardServer, trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEMPSAMP_TOKEN")
    with pytest.raises(RuntimeError, match=r"401.*token"):
        ask(trainer, url=server.url)


@trainers
def test_unscored_answer_is_no_zero(server: RewardServer, trainer: str) -> None:
    broken = {"url": server.url, "task": '"misbehaves"', "texts": ["fine", "raise"]}
    if trainer.startswith("trl"):
        assert ask(trainer, **broken) == [pytest.approx(HALF - 0.1), None]
    else:
        with pytest.raises(RuntimeError, match=r"unscored: .*no such thing"):
            ask(trainer, **broken)


def test_parts_of_a_reward_reach_the_log(server: RewardServer) -> None:
    parts = pytest.approx({"iou": 0.5, "iou_shaped": HALF - 0.1, "format": 1.0})
    verl = scope_of("verl", url=server.url)
    (score,) = verl["compute_score_batch"](["timelens"], TEXTS[1:2], TRUTHS[1:2], [{}])
    assert {key: value for key, value in score.items() if key != "score"} == parts
    easyr1 = scope_of("EasyR1", url=server.url)
    (score,) = easyr1["compute_score"]([{"response": TEXTS[1], "ground_truth": TRUTHS[1]}])
    assert {key: value for key, value in score.items() if key != "overall"} == parts
    verl["service"].close()
    easyr1["service"].close()


def test_proxy_of_the_environment_is_not_used(
    server: RewardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert len(ask("trl", url=server.url)) == 3


class _Half(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = b'{"items": [{"verdicts": [{"kind": "scored", "reward": 0.5}]}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_service_that_is_a_moment_away_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    late: list[HTTPServer] = []

    def start() -> None:
        late.append(HTTPServer(address, _Half))
        late[0].handle_request()

    starting = threading.Timer(1.0, start)
    starting.start()
    try:
        assert ask("trl", url=f"http://127.0.0.1:{address[1]}", texts=TEXTS[:1]) == [0.5]
    finally:
        starting.join()
        late[0].server_close()
