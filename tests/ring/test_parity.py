"""The parity gate stops a learner whose engine gives other log-probabilities; no vLLM."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from common.messages import (
    GeneratedAnswer,
    GenerateRequest,
    GenerateResponse,
    Sample,
    VersionSpan,
)
from tests.fixtures.learner.groups import policy_sample
from tests.fixtures.learner.recorded_learner import REPLICA, RecordedRing

pytestmark = pytest.mark.timeout(300)


class StrangeReplica(HTTPServer):
    """Answers probes at `versions` in turn, every token at -2 nats whatever the weights say."""

    def __init__(self, ring: RecordedRing, *, versions: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ring, self.versions = ring, versions
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, asked: GenerateRequest) -> GenerateResponse:
        version = self.versions.pop(0)
        group = self.ring.recorded
        answers = [
            GeneratedAnswer(sample=_at(version, policy_sample((1, 2, 3))), text="abc")
            for _ in range(asked.num_samples)
        ]
        return GenerateResponse(
            prompt_token_ids=group.prompt_token_ids,
            num_visual_tokens=group.num_visual_tokens,
            grid_thw=group.grid_thw,
            answers=tuple(answers),
        )


def _at(version: int, sample: Sample) -> Sample:
    span = VersionSpan(version=version, start=0, end=len(sample.token_ids))
    return sample.model_copy(update={"version_spans": (span,)})


class _Handler(BaseHTTPRequestHandler):
    server: StrangeReplica

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        asked = GenerateRequest.model_validate_json(self.rfile.read(length))
        body = self.server.answer(asked).model_dump_json().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not on the tests' output."""


@pytest.fixture
def ring(recorded_ring: RecordedRing) -> RecordedRing:
    return recorded_ring


@pytest.fixture
def replica(
    ring: RecordedRing, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StrangeReplica]:
    replica = StrangeReplica(ring, versions=list(request.param))
    monkeypatch.setenv(REPLICA, replica.url)
    thread = threading.Thread(target=replica.serve_forever)
    thread.start()
    yield replica
    replica.shutdown()
    thread.join()
    replica.server_close()


@pytest.mark.parametrize("replica", [[0]], indirect=True)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_at_the_first_version_no_prompt_is_fed_and_nothing_is_left(
    ring: RecordedRing, replica: StrangeReplica, ranks: int
) -> None:
    learner = ring.start(ranks=ranks, probe_every=20)
    learner.finish(code=1)
    (line,) = [line for line in learner.text.splitlines() if line.startswith("tempsamp: ")]
    assert line.startswith("tempsamp: ParityError: version 0: ")
    assert replica.url in line
    assert "learner.probe_max_gap_nats" in line
    assert not (ring.run_dir / "checkpoints").exists()
    assert not (ring.run_dir / "metrics.jsonl").exists()


@pytest.mark.parametrize("replica", [[7, 1]], indirect=True)
def test_what_could_not_be_compared_is_compared_next_and_ends_with_a_checkpoint(
    ring: RecordedRing, replica: StrangeReplica
) -> None:
    learner = ring.start(probe_every=20)
    learner.finish(code=1)
    assert learner.said("no probe")[0]["found"] == [7]
    assert "tempsamp: ParityError: version 1: " in learner.text
    assert (ring.run_dir / "checkpoints/step-000001").is_dir()
    line = (ring.run_dir / "metrics.jsonl").read_text()
    assert '"learner/probe_logprob_gap_mean_nats"' in line


@pytest.mark.parametrize("replica", [[0, 2]], indirect=True)
def test_wide_bounds_let_the_run_go_on(ring: RecordedRing, replica: StrangeReplica) -> None:
    wide = {"probe_max_gap_nats": 100.0, "probe_mean_gap_nats": 100.0}
    ring.start(probe_every=2, steps=3, **wide).finish()
    assert replica.versions == [], "asked at versions 0 and 2"
