"""Two FSDP ranks compute what one process computes."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoConfig

from common.errors import ConfigError
from common.messages import ScoredGroup
from services.learner import parallel
from services.learner.batching.batch import collate
from services.learner.model.policy import load_policy
from services.learner.parallel import Ranks, shard_model, start_ranks
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.learner_rank import Case, case_gradients, write_cases
from tests.fixtures.learner.ranks import RunRanks, as_ranks
from tests.fixtures.learner.tiny_models import Architecture, tied_copy

ROOT = Path(__file__).parents[4]
DEADLINE_S = 120
CASES = (
    *("frozen_tower", "trained_tower", "checkpointed", "linear_attention", "tied"),
    *("empty_rank", "empty_rank_with_tower", "split_group"),
    *("adapters", "adapted_tower", "adapted_linear_attention"),
    *("reference", "reference_with_tower"),
)


@pytest.fixture(scope="module")
def cases(
    tiny_model: Callable[[Architecture], Path],
    clip_paths: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    """Groups of different lengths for two ranks; with one group one of them has nothing to do."""

    def groups(architecture: Architecture, count: int) -> list[str]:
        model = tiny_model(architecture)
        made = [
            scored_group(
                model,
                clip_ref(clip_paths[i % 2], architecture=architecture),
                video_token_id=AutoConfig.from_pretrained(model).video_token_id,
                answer_lengths=(3, 5, 2),
                query="When?" * (1 + i),
                seed=i,
            )
            for i in range(count)
        ]
        return [group.model_dump_json() for group in made]

    def case(name: str, architecture: Architecture = "qwen3_vl", **changed: object) -> Case:
        settings = {"freeze_vision": True, "gradient_checkpointing": False, **changed}
        count = int(settings.pop("count", 3))
        folder = str(settings.pop("model", tiny_model(architecture)))
        return Case(name=name, model=folder, groups=groups(architecture, count), **settings)

    made = [
        case("frozen_tower"),
        case("trained_tower", freeze_vision=False),
        case("checkpointed", freeze_vision=False, gradient_checkpointing=True),
        case("empty_rank", count=1),
        case("empty_rank_with_tower", count=1, freeze_vision=False),
        case("split_group", count=1, splits=True),
        case("linear_attention", "qwen3_5"),
        case("adapters", adapters=True, gradient_checkpointing=True),
        case("adapted_tower", adapters=True, freeze_vision=False),
        case("adapted_linear_attention", "qwen3_5", adapters=True),
        case("reference", kl=True),
        case("reference_with_tower", kl=True, freeze_vision=False),
        case("tied", model=tied_copy(tiny_model("qwen3_vl"), tmp_path_factory.mktemp("tied"))),
    ]
    return {one.name: one for one in made}


@pytest.fixture(scope="module")
def two_ranks(
    cases: dict[str, Case], run_ranks: RunRanks, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder with the gradients that two ranks wrote."""
    folder = tmp_path_factory.mktemp("two_ranks")
    write_cases(folder, list(cases.values()))
    module = "tests.fixtures.learner.learner_rank"
    run_ranks(2, module, str(folder), timeout_s=DEADLINE_S)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_in_loss_and_gradients(
    name: str, cases: dict[str, Case], two_ranks: Path
) -> None:
    assert_as_one_process(cases[name], two_ranks)


def test_two_copies_of_two_ranks_equal_one_and_publish_whole_weights(
    cases: dict[str, Case], run_ranks: RunRanks, tmp_path: Path
) -> None:
    """HSDP: three groups for four ranks, so one of them is idle."""
    chosen = [cases["frozen_tower"], cases["tied"]]
    write_cases(tmp_path, chosen)
    run_ranks(4, "tests.fixtures.learner.copies_rank", str(tmp_path), timeout_s=DEADLINE_S)
    for case in chosen:
        assert_as_one_process(case, tmp_path)


def assert_as_one_process(case: Case, folder: Path) -> None:
    """Loss and gradients that ranks wrote are those of a single process."""
    found, wanted = load_file(folder / f"{case.name}.safetensors"), case_gradients(case)
    assert found.keys() == wanted.keys()
    if case.adapters:
        assert all(".lora_" in key for key in found.keys() - {"loss"})
    assert any("visual" in key for key in found) != case.freeze_vision
    assert found["loss"].item() == pytest.approx(wanted["loss"].item(), rel=1e-5)
    for key, gradient in wanted.items():
        # One process forwards all groups at once: the same sums, in another order.
        largest = float(gradient.abs().max())
        assert torch.allclose(found[key], gradient, rtol=1e-4, atol=1e-6 + 1e-5 * largest), key


@pytest.fixture
def one_rank() -> Iterator[Ranks]:
    ranks = start_ranks("cpu", timeout_s=10)
    yield ranks
    ranks.close()
    assert not dist.is_initialized()


def test_without_a_launcher_there_is_one_rank(one_rank: Ranks) -> None:
    assert (one_rank.rank, one_rank.world_size, one_rank.is_main) == (0, 1, True)
    assert one_rank.broadcast_json([1, "ä"]) == [1, "ä"]
    assert one_rank.gather_json({"a": "ä"}) == [{"a": "ä"}]
    assert one_rank.all_reduce_sum(torch.tensor([2.0])).tolist() == [2.0]


def test_one_rank_in_float32_is_left_unsharded(one_rank: Ranks, cases: dict[str, Case]) -> None:
    policy = load_policy(cases["frozen_tower"].model)
    shard_model(policy, ranks=one_rank, compute_dtype=torch.float32)
    assert {type(parameter) for parameter in policy.parameters()} == {torch.nn.Parameter}


@pytest.mark.parametrize("name", ["frozen_tower", "trained_tower", "linear_attention"])
def test_bfloat16_computes_on_float32_masters(
    name: str, one_rank: Ranks, cases: dict[str, Case]
) -> None:
    case = cases[name]
    group = ScoredGroup.model_validate_json(case.groups[0])
    (batch,) = collate([group], [[1.0] * 3], limits=limits()).micro_batches
    scores = []
    for dtype in (torch.float32, torch.bfloat16):
        policy = load_policy(case.model, freeze_vision=case.freeze_vision)
        shard_model(policy, ranks=one_rank, compute_dtype=dtype)
        scores.append(policy(batch).logprobs_GSR)
    scores[1].sum().backward()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert {parameter.grad.dtype for parameter in trained if parameter.grad is not None} == {
        torch.float32
    }
    gap_nats = (scores[0] - scores[1]).abs().max().item()
    assert 0 < gap_nats < 0.5


@pytest.mark.parametrize(("shard_within", "local"), [(3, "4"), ("node", "3"), (8, "4")])
def test_ranks_that_cannot_be_divided_are_refused(
    shard_within: Literal["node"] | int, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    with pytest.raises(ConfigError, match=r"learner\.shard_within: found .* with 4 ranks, wanted"):
        parallel._ranks_of_a_copy(shard_within, 4)


def test_a_copy_is_a_nodes_or_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    found = [parallel._ranks_of_a_copy(within, 16) for within in ("all", "node", 4)]  # type: ignore[arg-type]
    assert found == [16, 8, 4]


def test_a_rank_ends_with_the_launcher_that_started_it(tmp_path: Path) -> None:
    rank = tmp_path / "rank.py"
    rank.write_text(
        "import pathlib, sys, time\n"
        "from services.learner.parallel import start_ranks\n"
        "start_ranks('cpu', timeout_s=30)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(120)\n"
    )
    joined = tmp_path / "joined"
    launcher = subprocess.Popen(
        as_ranks(2, str(rank), str(joined)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + DEADLINE_S
    while not joined.exists():
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.wait()
    assert len(ranks) == 2
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive


def test_a_wait_inside_a_call_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parallel, "SAY_EVERY_S", 0.02)
    with parallel.said_while_waiting("waiting for the other ranks", world_size=2):
        deadline_s = time.monotonic() + 20
        while len(caplog.records) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert len(caplog.records) >= 2
    assert caplog.records[0].__dict__["world_size"] == 2
    time.sleep(0.1)
    said = len(caplog.records)
    time.sleep(0.1)
    assert len(caplog.records) == said
