"""Model folder → the sharded policy of every rank, without a whole copy on any of them.

Each rank builds the model without memory (`policy.load_policy(empty=True)`), shards it
(`parallel.shard_model`) and gives memory to its shares; then rank 0 reads the files, a tensor at a
time, and every rank keeps its rows. A single rank has the whole model anyway and loads it directly.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from common.config import Kernels
from common.model.expected import renamed_of
from common.model.tensors import Stored, stored
from services.learner.model.kernels import compile_layers
from services.learner.model.lora import hugging_face_name
from services.learner.model.policy import Policy, load_policy
from services.learner.model.rows import own_rows
from services.learner.parallel import Ranks, shard_model

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What files call them."""


def start_policy(
    path: Path,
    *,
    ranks: Ranks,
    compute_dtype: torch.dtype,
    dtype: torch.dtype = torch.float32,
    kernels: Kernels | None = None,
    **settings: Any,
) -> Policy:
    """Load and shard the policy; a collective.

    Args:
        path: a Hugging Face checkpoint folder, readable for every rank.
        ranks: who shares the policy.
        compute_dtype: of the forward and backward passes, and of a frozen tower's parameters.
        dtype: of the other parameters: float32 for masters.
        kernels: which layers are compiled; None: none.
        settings: as for `load_policy`, but for device.

    Raises:
        ValueError, ConfigError: as `load_policy`.
    """
    empty = ranks.world_size > 1
    policy = load_policy(path, dtype=dtype, device=ranks.device, empty=empty, **settings)
    if kernels is not None:
        compile_layers(policy, kernels, device=ranks.device)
    drawn = _prepare_adapters(policy, path, compute_dtype) if empty else {}
    shard_model(policy, ranks=ranks, compute_dtype=compute_dtype)
    if empty:
        _give_memory(policy, ranks.device)
        _fill(policy, path, drawn, ranks=ranks)
        _carry_generation_settings(policy, path)
    return policy


def _prepare_adapters(policy: Policy, path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Values of the adapters, which no file has: equal on all ranks, whose seed is the same.

    What they stand beside is frozen, and kept in `dtype` where the file has it so.
    """
    drawn: dict[str, Tensor] = {}
    if policy.adapters is None:
        return drawn
    files = _files(policy, path)
    for module_name, module in policy.model.named_modules():
        for own_name, parameter in list(module.named_parameters(recurse=False)):
            name = f"{module_name}.{own_name}"
            file_name = hugging_face_name(name)
            if file_name is None:
                drawn[name] = _drawn(name, parameter.shape)
            elif file_name in files and DTYPES[files[file_name][1].dtype] == dtype:
                parameter.data = parameter.data.to(dtype)
    return drawn


def _drawn(name: str, shape: torch.Size) -> Tensor:
    """As PEFT begins: A like the weights of a linear layer, B at 0."""
    values = torch.zeros(shape)
    if ".lora_A." in name:
        nn.init.kaiming_uniform_(values, a=math.sqrt(5))
    return values


def _files(policy: Policy, path: Path) -> dict[str, tuple[str, Stored]]:
    """By the model's own name: the file's, and what it holds."""
    renamed = renamed_of(type(policy.model).__name__)
    return {renamed(name): (name, tensor) for name, tensor in stored(path).items()}


def _give_memory(policy: Policy, device: torch.device) -> None:
    """Parameters and buffers without values → with undefined ones, but for computed buffers."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in policy.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name))
    policy.to_empty(device=device)
    for (owner, own_name), *others in places.values():  # to_empty takes tied ones apart
        for module, name in others:
            setattr(module, name, getattr(owner, own_name))
    for module in policy.modules():
        if module._non_persistent_buffers_set:
            policy.model._init_weights(module)  # rotary frequencies: files do not hold them


@torch.no_grad()
def _fill(policy: Policy, path: Path, drawn: Mapping[str, Tensor], *, ranks: Ranks) -> None:
    files = _files(policy, path)
    kept = policy.model.state_dict(keep_vars=True)
    for name, target in kept.items():
        if name in drawn:
            keep_rows(target, drawn[name])
            continue
        file_name = hugging_face_name(name)
        if file_name in files and not _done_before(name, kept):
            keep_rows(target, _read(*files[file_name], ranks=ranks))


def _done_before(name: str, kept: Mapping[str, Tensor]) -> bool:
    """Whether an earlier name is the same tensor: a tied head that the file holds too."""
    return next(other for other, tensor in kept.items() if tensor is kept[name]) != name


def _read(name: str, tensor: Stored, *, ranks: Ranks) -> Tensor:
    """Rank 0's values on every rank, in the file's dtype; a collective."""
    if ranks.is_main:
        with safe_open(tensor.file, framework="pt") as file:
            whole: Tensor = file.get_tensor(name).to(ranks.device).contiguous()
    else:
        whole = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device=ranks.device)
    dist.broadcast(whole, src=0)
    return whole


@torch.no_grad()
def keep_rows(target: Tensor, whole: Tensor) -> None:
    """This rank's rows, or all of them."""
    local = target.to_local() if isinstance(target, DTensor) else target
    local.copy_(own_rows(whole, target))


def _carry_generation_settings(policy: Policy, path: Path) -> None:
    """What an export holds beside the weights, as after `from_pretrained`."""
    from transformers import GenerationConfig

    with suppress(OSError):  # without the file the configuration gives them
        policy.model.generation_config = GenerationConfig.from_pretrained(path)
