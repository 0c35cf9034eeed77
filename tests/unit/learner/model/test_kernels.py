"""What a GPU has to have for gated delta nets, and layers compiled once for all shapes."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.config import Kernels
from common.errors import ConfigError
from common.messages import ClipRef
from services.learner.batching.batch import MicroBatch, collate
from services.learner.model import kernels
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks, shard_model
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.tiny_models import Architecture

Tiny = Callable[[Architecture], Path]
CPU = torch.device("cpu")


def breaking(error: Exception) -> Callable[[str], ModuleType]:
    """An `import_module` under which flash-linear-attention fails with `error`."""
    original = importlib.import_module

    def import_module(name: str, *rest: Any) -> ModuleType:
        if name.startswith("fla"):
            raise error
        return original(name, *rest)

    return import_module


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'fla'"), RuntimeError("Triton is too old")]
)
def test_delta_nets_on_a_gpu_without_their_kernels_are_refused(
    tiny_model: Tiny, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", breaking(error))
    with pytest.raises(ConfigError) as refusal:
        kernels.require_delta_net(tiny_model("qwen3_5"), device="cuda", settings=Kernels())
    for word in (
        "shared.model",
        str(error),
        "flash-linear-attention>=0.6",
        "triton>=3.7.1",
        "20 times",
        "learner.kernels.slow_delta_net = true",
    ):
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("architecture", "device", "settings"),
    [
        ("qwen3_5", "cpu", Kernels()),
        ("qwen3_5", "cuda", Kernels(slow_delta_net=True)),
        ("qwen3_vl", "cuda", Kernels()),
    ],
)
def test_nothing_is_asked_of_cpus_of_attention_and_of_who_allows_it(
    tiny_model: Tiny,
    architecture: Architecture,
    device: str,
    settings: Kernels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib, "import_module", breaking(ModuleNotFoundError("fla")))
    kernels.require_delta_net(tiny_model(architecture), device=device, settings=settings)


def test_importable_kernels_are_enough(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(importlib, "import_module", lambda name, *_: asked.append(name))
    kernels.require_delta_net(tiny_model("qwen3_5"), device="cuda", settings=Kernels())
    assert asked == ["fla.ops.gated_delta_rule"]


@pytest.mark.filterwarnings("ignore")  # of torch's own, while the compiler is imported
@pytest.mark.parametrize(
    ("architecture", "device", "setting", "compiled"),
    [
        ("qwen3_vl", "cpu", "auto", [False, False]),
        ("qwen3_vl", "cpu", "on", [True, True]),
        ("qwen3_vl", "cuda", "auto", [True, True]),
        ("qwen3_vl", "cuda", "off", [False, False]),
        ("qwen3_5", "cuda", "auto", [False, True, False]),
    ],
)
def test_layers_that_attend_are_compiled(
    tiny_model: Tiny,
    architecture: Architecture,
    device: str,
    setting: str,
    compiled: list[bool],
) -> None:
    policy = load_policy(tiny_model(architecture))
    before = [layer.forward for layer in policy.decoder_layers]
    settings = Kernels.model_validate({"compile": setting})
    count = kernels.compile_layers(policy, settings, device=torch.device(device))
    after = [layer.forward for layer in policy.decoder_layers]
    assert [new != old for new, old in zip(after, before, strict=True)] == compiled
    assert count == sum(compiled)


@pytest.fixture
def clip(clip_paths: tuple[Path, Path]) -> ClipRef:
    return clip_ref(clip_paths[0], architecture="qwen3_vl")


def batch_of(policy: Policy, model: Path, clip: ClipRef, lengths: list[int]) -> MicroBatch:
    """A group whose prompt is as long as its answers are many."""
    group = scored_group(
        model,
        clip,
        video_token_id=policy.model.config.video_token_id,
        answer_lengths=lengths,
        query="When" * len(lengths),
    )
    (batch,) = collate([group], [[1.0] * len(lengths)], limits=limits()).micro_batches
    return batch


def learned(policy: Policy, batch: MicroBatch) -> dict[str, Tensor]:
    """Log-probabilities, and the gradients of their weighted sum."""
    policy.zero_grad()
    logprobs = policy(batch).logprobs_GSR
    (logprobs * torch.linspace(-1.0, 2.0, logprobs.numel()).view_as(logprobs)).sum().backward()
    gradients = {
        name: parameter.grad.full_tensor()
        if isinstance(parameter.grad, DTensor)
        else parameter.grad
        for name, parameter in policy.named_weights()
        if parameter.grad is not None
    }
    return {"logprobs": logprobs.detach(), **gradients}


@pytest.mark.chaos  # a minute, nearly all of it in the compiler
@pytest.mark.filterwarnings("ignore")  # of torch's own, inside the compiler
def test_compiled_layers_learn_the_same_and_one_compilation_takes_all_shapes(
    tiny_model: Tiny, clip: ClipRef, ranks: Ranks
) -> None:
    """Checkpointed, in bfloat16 under FSDP; traced as for a GPU, run operation by operation."""
    model = tiny_model("qwen3_vl")
    plain, compiled = (load_policy(model, recomputed=1.0) for _ in range(2))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = Kernels(compile="on")
    assert kernels.compile_layers(compiled, settings, device=CPU, backend="aot_eager")
    for policy in (plain, compiled):
        shard_model(policy, ranks=ranks, compute_dtype=torch.bfloat16)
    frames = []
    for lengths in ([5, 2, 4], [7, 3, 2, 4], [9, 3, 2, 4, 5], [3, 2, 2, 4, 5, 6]):
        batch = batch_of(plain, model, clip, lengths)
        found, wanted = learned(compiled, batch), learned(plain, batch)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        frames.append(torch._dynamo.utils.counters["frames"]["ok"])
    assert frames[0] > 0
    assert frames[1:] == [frames[1]] * 3, "compiled anew for another shape"
