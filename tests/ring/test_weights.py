"""Weights reach a running vLLM exactly: after each update its logprobs are the learner's."""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from common.config import Lora, bearer
from common.messages import PromptRequest, ReplicaStatus, ScoredGroup, SpansTarget
from common.prompts import chat_messages
from common.video.frames import sample_clip
from jobs.toy import clips
from services.learner import parallel
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks
from services.learner.probe import generate_probe, logprob_gap
from services.learner.publishing.publisher import Publisher
from services.rollout.gpu import CLAIMED
from tests.fixtures.learner.learner_rank import fill_adapters
from tests.ring.conftest import ROOT, Ring

RUN_TAG = "5f3a1c"
MAX_GAP_NATS = 1e-4
CLEAR_GAP_NATS = 1e-2

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    ranks = parallel.start_ranks("cpu", timeout_s=60)
    yield ranks
    ranks.close()


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Policy:
    """All weights trained, or the adapters of the parameter."""
    adapters = getattr(request, "param", None)
    return load_policy(ROOT / "deploy/tiny-qwen3vl", adapters=adapters)


@pytest.fixture
def publisher(ring: Ring, policy: Policy, ranks: Ranks) -> Iterator[Publisher]:
    run = ring.run()
    publisher = Publisher(
        policy,
        shared=run.shared,
        learner=run.learner.model_copy(update={"publish": "delta"}),
        ranks=ranks,
        replicas=ring.replicas,
        run_tag=RUN_TAG,
        epoch=ring.next_epoch(),
    )
    yield publisher
    publisher.close()


@pytest.fixture(scope="module")
def prompt(ring: Ring) -> PromptRequest:
    clips.write_split(ring.folder / "clips", "validation", num_clips=1)
    path = ring.folder / "clips" / clips.clip_path("validation", 0)
    run = ring.run()
    return PromptRequest(
        prompt_id="p",
        sequence=1,
        row_id="r",
        epoch=0,
        mode="answer",
        task="temporal_grounding",
        clip=sample_clip(path, sampling=clips.SAMPLING),
        messages=chat_messages(clips.PROBLEM.format(query="the red circle is visible")),
        target=SpansTarget(spans=((1.0, 2.0),)),
        num_samples=4,
        sampling=run.shared.sampling,
        min_version=0,
    )


def probe(ring: Ring, publisher: Publisher, prompt: PromptRequest, version: int) -> ScoredGroup:
    url = publisher.member_urls()[0]
    group = generate_probe(prompt, url=url, version=version, shared=ring.run().shared)
    assert group is not None
    return group


def nudge(policy: Policy, *, seed: int, share: float) -> None:
    """What an optimizer step does, only larger, and to some of the values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                chosen = torch.rand(parameter.shape, generator=generator) < share
                parameter.add_(chosen * 0.1 * parameter.abs().mean() * noise)


def test_logprobs_equal_the_learners_after_each_update_and_differ_from_the_old_ones(
    ring: Ring, publisher: Publisher, policy: Policy, prompt: PromptRequest, ranks: Ranks
) -> None:
    publisher.publish(1, step=1)
    before = probe(ring, publisher, prompt, version=1)
    assert gap_nats(policy, before, ranks) < MAX_GAP_NATS
    assert publisher.last is not None
    whole = publisher.last.num_bytes
    for version, share in ((2, 1.0), (3, 0.05)):
        nudge(policy, seed=version, share=share)
        assert gap_nats(policy, before, ranks) > CLEAR_GAP_NATS
        publisher.publish(version, step=version)
        assert publisher.last is not None
        assert publisher.last.version == version
        if share < 1:
            assert publisher.last.num_bytes < whole / 5, "a delta"
        after = probe(ring, publisher, prompt, version=version)
        assert gap_nats(policy, after, ranks) < MAX_GAP_NATS
        before = after


@pytest.mark.parametrize("policy", [Lora(rank=4, alpha=1.0)], indirect=True)
def test_the_engine_samples_the_adapted_model(
    ring: Ring, publisher: Publisher, policy: Policy, prompt: PromptRequest, ranks: Ranks
) -> None:
    publisher.publish(1, step=1)
    start = probe(ring, publisher, prompt, version=1)
    assert gap_nats(policy, start, ranks) < MAX_GAP_NATS
    fill_adapters(policy)
    publisher.publish(2, step=2)
    adapted = probe(ring, publisher, prompt, version=2)
    assert gap_nats(policy, adapted, ranks) < MAX_GAP_NATS
    with torch.no_grad():
        assert policy.adapters is not None
        with policy.adapters.off():
            assert gap_nats(policy, start, ranks) < MAX_GAP_NATS
            assert gap_nats(policy, adapted, ranks) > CLEAR_GAP_NATS


def gap_nats(policy: Policy, group: ScoredGroup, ranks: Ranks) -> float:
    """The largest distance of engine and learner over a probe's tokens."""
    return logprob_gap(policy, group, ranks=ranks, max_nats=MAX_GAP_NATS).max_nats


def is_free(claimed: Path) -> bool:
    """Whether nobody holds the file of a GPU."""
    with claimed.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.chaos
def test_late_joiner_waits_for_weights_and_a_dead_replica_is_dropped(
    ring: Ring, publisher: Publisher, policy: Policy, prompt: PromptRequest, ranks: Ranks
) -> None:
    """The joiner has two workers, which share each tensor: vLLM's tensor parallelism."""
    publisher.publish(1, step=1)
    assert not publisher.has_strangers
    claimed = ring.folder / "claimed.lock"
    claimed.touch()
    late = ring.start_rollout(
        "late", environ={CLAIMED: json.dumps([str(claimed)])}, rollout__tensor_parallel=2
    )
    replicas = ring.wait_for_replicas(2)
    newcomer = next(r for r in replicas if r.url not in publisher.member_urls())
    assert newcomer.phase == "syncing"
    assert newcomer.version is None
    assert newcomer.num_workers == 2
    assert publisher.has_strangers

    for version, share in ((2, 1.0), (3, 0.05)):
        nudge(policy, seed=version, share=share)
        publisher.publish(version, step=version)
        assert len(publisher.member_urls()) == 2
        for url in publisher.member_urls():
            group = generate_probe(prompt, url=url, version=version, shared=ring.run().shared)
            assert group is not None
            assert gap_nats(policy, group, ranks) < MAX_GAP_NATS

    ring.children.unwatch(late)
    its_own = psutil.Process(late.process.pid).children(recursive=True)
    assert any("EngineCore" in process.name() for process in its_own)
    assert not is_free(claimed), "its engine holds the GPU"
    late.process.kill()
    assert psutil.wait_procs(its_own, timeout=20)[1] == [], "its engine died with it"
    assert is_free(claimed)
    publisher.publish(4, step=4)
    assert publisher.last is not None
    assert publisher.last.version == 4
    assert len(publisher.member_urls()) == 1
    assert publisher.member_urls() != [newcomer.url]
    (url,) = publisher.member_urls()
    answer = httpx.get(f"{url}/v1/weights", headers=bearer(ring.run().shared.tokens.of("control")))
    served = ReplicaStatus.model_validate_json(answer.content)
    assert (served.version, served.run_tag) == (4, RUN_TAG)
