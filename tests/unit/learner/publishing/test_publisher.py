"""Versions reach every replica that can be reached, bit for bit, whatever the others do.

Replicas are processes of their own with the real REST face, link and receiver, without vLLM.
"""

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from pydantic import SecretStr

from common.errors import WeightError
from services.learner.parallel import Ranks
from services.learner.publishing.publisher import Publisher
from tests.fixtures.weights.weight_fleet import Fleet, Weights, publisher

pytestmark = pytest.mark.timeout(120)
TOKEN = "t0ken" * 6

Make = Callable[..., Publisher]


@pytest.fixture
def make(fleet: Fleet, ranks: Ranks) -> Iterator[Make]:
    made: list[Publisher] = []

    def build(weights: Weights, **settings: object) -> Publisher:
        made.append(publisher(weights, fleet, ranks, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for item in made:
        item.close()


@pytest.mark.parametrize(
    ("mode", "place", "dtype"),  # any two of them in all combinations
    [
        ("full", "device", torch.bfloat16),
        ("full", "host", torch.float32),
        ("delta", "device", torch.float32),
        ("delta", "host", torch.bfloat16),
    ],
    ids=str,
)
def test_every_replica_holds_the_learners_bits(
    fleet: Fleet, make: Make, mode: str, place: str, dtype: torch.dtype
) -> None:
    replicas = fleet.start("a", f"b:{place}")
    weights = Weights(megabytes=2, dtype=dtype)
    how = {"publish": mode, "weight_staging": place}
    publishing = make(weights, **how, min_replicas=2, bucket_bytes=300_000)
    for version in (1, 2, 3):
        weights.nudge(share=0.02, seed=version)
        publishing.publish(version, step=version)
        assert all(replica.digests() == weights.digests() for replica in replicas)
        assert publishing.last is not None
        assert publishing.last.version == version
    held = [replica.status().held for replica in replicas]
    assert held[0] == held[1]
    assert held[0].trained == publishing.last.digest
    assert publishing.figures["learner/pause_ms"] > 0


def test_frozen_tensors_travel_once_and_deltas_are_small(fleet: Fleet, make: Make) -> None:
    fleet.start("a")
    weights = Weights(megabytes=4)
    publishing = make(weights, publish="delta")
    publishing.publish(1, step=1)
    assert publishing.last is not None
    whole = publishing.last.num_bytes
    weights.nudge(share=0.02)
    publishing.publish(2, step=2)
    assert 20 * publishing.last.num_bytes < whole
    publishing.publish(3, step=3)
    assert publishing.last.num_bytes < 100, "nothing changed"


def test_a_late_replica_is_served_without_the_others(fleet: Fleet, make: Make) -> None:
    (early,) = fleet.start("early")
    weights = Weights(megabytes=4)
    publishing = make(weights, publish="delta")
    publishing.publish(1, step=1)
    generation = early.status().generation
    (late,) = fleet.start("late")
    assert publishing.has_strangers
    publishing.welcome()
    assert late.digests() == weights.digests()
    assert early.status().generation == generation, "nobody else joined anything"
    assert not publishing.has_strangers
    weights.nudge(share=0.01)
    publishing.publish(2, step=2)
    assert publishing.last is not None
    assert publishing.last.num_bytes < 500_000, "both take the delta, in one group again"
    assert early.digests() == late.digests() == weights.digests()
    assert early.status().generation == late.status().generation


def when_broadcasting(group: list[str], do: Callable[[], None], after_s: float) -> None:
    threading.Timer(after_s, do).start()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_freezes_in_mid_broadcast_costs_the_others_seconds(
    fleet: Fleet, make: Make, number: int
) -> None:
    victim, *healthy = fleet.start("victim:slow=0.2", "b:slow=0.2", "c:slow=0.2")
    weights = Weights(megabytes=2)
    deadline_s = 4.0
    publishing = make(weights, publish_timeout_s=deadline_s, bucket_bytes=200_000)
    publishing.publish(1, step=1)
    weights.nudge()
    struck: list[float] = []

    def strike() -> None:
        victim.signal(number)
        struck.append(time.monotonic())

    when_broadcasting([], strike, 0.7)
    publishing.publish(2, step=2)
    assert struck, "in mid-broadcast"
    # Slow receivers take 2.2 s for the version itself.
    transfer_s = 0.2 * 11
    took_s = time.monotonic() - struck[0] - transfer_s
    assert took_s < (3.0 if number == signal.SIGKILL else deadline_s + 3.0)
    assert len(publishing.member_urls()) == 2
    for replica in healthy:
        assert replica.status().version == 2
        assert replica.digests() == weights.digests()


@pytest.mark.parametrize("behaviour", ["join_fails", "apply_fails", "elsewhere"])
def test_a_sick_replica_is_left_out_and_the_rest_get_the_version(
    fleet: Fleet, make: Make, behaviour: str, caplog: pytest.LogCaptureFixture
) -> None:
    sick, healthy = fleet.start(f"sick:{behaviour}", "healthy")
    if behaviour == "elsewhere":  # a firewall, or a wrong advertise_host
        fleet.listed[0] = fleet.listed[0].model_copy(update={"url": sick.url})
    weights = Weights()
    publishing = make(weights)
    with caplog.at_level(logging.WARNING):
        for version in (1, 2):
            publishing.publish(version, step=version)
            assert healthy.status().version == version
            assert healthy.digests() == weights.digests()
    assert publishing.member_urls() == [healthy.url]
    assert not publishing.has_strangers, "it is not asked all the time"
    said = [record for record in caplog.records if record.message == "replica left out"]
    assert len(said) == 1
    assert said[0].replica == "sick"  # type: ignore[attr-defined]
    if behaviour == "apply_fails":
        assert sick.status().phase == "broken"


def test_a_sick_replica_is_asked_again(
    fleet: Fleet, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.learner.publishing.membership.FIRST_BACK_OFF_S", 0.5)
    replica, _ = fleet.start("a", "b")
    weights = Weights()
    publishing = make(weights, publish_timeout_s=2.0)
    replica.signal(signal.SIGSTOP)
    publishing.publish(1, step=1)
    assert len(publishing.member_urls()) == 1
    replica.signal(signal.SIGCONT)
    time.sleep(0.6)
    assert publishing.has_strangers
    publishing.welcome()
    assert len(publishing.member_urls()) == 2
    assert replica.digests() == weights.digests()


def test_a_slow_transfer_that_moves_succeeds(fleet: Fleet, make: Make) -> None:
    fleet.start("a:slow=0.5")
    # More than NCCL keeps on its way: a sender that is done early waits one deadline for the rest.
    publishing = make(Weights(megabytes=64), publish_timeout_s=2.0, bucket_bytes=6_000_000)
    publishing.publish(1, step=1)
    assert publishing.figures["learner/transfer_s"] > 4.0, "twice the deadline of a bucket"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://[::1", "nonsense", "http://127.0.0.1:1"]
)
def test_garbage_in_the_registry_is_a_strike(fleet: Fleet, make: Make, url: str) -> None:
    (healthy,) = fleet.start("healthy")
    fleet.listed.insert(0, fleet.listed[0].model_copy(update={"url": url, "replica": "garbage"}))
    publishing = make(Weights())
    publishing.publish(1, step=1)
    assert publishing.member_urls() == [healthy.url]


def test_a_mute_listener_is_a_strike(fleet: Fleet, make: Make) -> None:
    (healthy,) = fleet.start("healthy")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        fleet.listed.append(fleet.listed[0].model_copy(update={"url": url, "replica": "mute"}))
        publishing = make(Weights())
        started = time.monotonic()
        publishing.publish(1, step=1)
        assert time.monotonic() - started < 5.0
    assert publishing.member_urls() == [healthy.url]


def test_without_replicas_the_wait_ends_and_says_who_failed(fleet: Fleet, make: Make) -> None:
    fleet.start("sick:join_fails")
    publishing = make(Weights(), wait_for_replicas_s=1.0)
    with pytest.raises(WeightError, match=r"found 0 .* wanted 1 .* sick at .*: cannot join"):
        publishing.publish(1, step=1)


def test_a_stop_ends_the_wait(fleet: Fleet, ranks: Ranks) -> None:
    publishing = publisher(Weights(), fleet, ranks)
    publishing._should_stop = lambda: True
    publishing.publish(1, step=1)
    assert publishing.member_urls() == []
    publishing.close()


def test_an_older_learner_is_refused(fleet: Fleet, make: Make) -> None:
    fleet.start("a")
    older, newer = make(Weights()), make(Weights(), wait_for_replicas_s=1.0)
    assert newer._courier is not None
    newer._courier._delivery._epoch = 2
    newer.publish(1, step=1)
    assert older._courier is not None
    older._settings = older._settings.model_copy(update={"wait_for_replicas_s": 1.0})
    with pytest.raises(WeightError, match="found epoch 1 of a learner that lost the run"):
        older.publish(2, step=2)


class _Stranger(BaseHTTPRequestHandler):
    """An entry in the registry that is no replica of ours, and keeps what it is told."""

    heard: ClassVar[list[str | None]] = []
    relay_to = ""

    def do_GET(self) -> None:
        import httpx

        self.heard.append(self.headers.get("Authorization"))
        answer = httpx.get(f"{self.relay_to}{self.path}").content
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.heard.append(self.headers.get("Authorization"))
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def test_a_stranger_in_the_registry_is_never_told_the_token(fleet: Fleet, make: Make) -> None:
    """Not even one that passes the challenge on to a real replica."""
    (real,) = fleet.start("real", token=TOKEN)
    _Stranger.relay_to, _Stranger.heard = real.url, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stranger)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    fleet.listed.append(fleet.listed[0].model_copy(update={"url": url, "replica": "stranger"}))
    publishing = make(Weights(), token=SecretStr(TOKEN))
    publishing.publish(1, step=1)
    server.shutdown()
    server.server_close()
    assert publishing.member_urls() == [real.url]
    assert _Stranger.heard == [None], "the challenge, and nothing after it"


def test_a_replica_with_another_token_is_not_told_ours(fleet: Fleet, make: Make) -> None:
    fleet.start("other", token="0ther" * 6)
    (real,) = fleet.start("real", token=TOKEN)
    publishing = make(Weights(), token=SecretStr(TOKEN))
    publishing.publish(1, step=1)
    assert publishing.member_urls() == [real.url]


def test_with_overlap_a_version_travels_while_the_caller_goes_on(fleet: Fleet, make: Make) -> None:
    (slow,) = fleet.start("slow:slow=0.2")
    weights = Weights(megabytes=2)
    publishing = make(weights, overlap_publish="on", bucket_bytes=200_000)
    started = time.monotonic()
    publishing.publish(1, step=1)
    captured = weights.digests()
    assert time.monotonic() - started < 1.0
    weights.nudge()  # the next step, while version 1 travels
    assert publishing.member_urls() == []
    publishing.settle()
    assert publishing.member_urls() == [slow.url]
    assert slow.digests() == captured != weights.digests()
    publishing.publish(2, step=2)
    publishing.settle()
    assert slow.digests() == weights.digests()
