"""Kernels of the decoder layers: what a GPU has to have, and torch.compile.

`train.py` asks before the weights are read (`require_delta_net`), and after
(`compile_layers`). Attention has its own file, `attention.py`.

transformers runs a gated delta net in flash-linear-attention's kernels (`chunk_gated_delta_rule`,
whose initial state has a gradient: that is what `prefix.py` forks) and its convolution in
causal-conv1d's or, without that, in PyTorch's grouped one. Where flash-linear-attention cannot be
imported, for whatever reason, it takes a reference loop of small kernels after a mere warning.
"""

import importlib
from pathlib import Path
from typing import Any

import torch

from common.config.kernels import Kernels
from common.errors import ConfigError
from services.learner.model import prefix
from services.learner.model.policy import Policy

DELTA_NET = "linear_attention"
"""transformers' name of such a layer."""
DELTA_NET_KERNELS = "fla.ops.gated_delta_rule"
"""Where flash-linear-attention has what transformers imports of it."""


def require_delta_net(model: str | Path, *, device: torch.device | str, settings: Kernels) -> None:
    """Refuse gated delta nets on a GPU that would run in transformers' reference loop.

    Raises:
        ConfigError: names the packages and the knob that allows it.
    """
    from transformers import AutoConfig

    if torch.device(device).type != "cuda" or settings.slow_delta_net:
        return
    if not has_delta_nets(AutoConfig.from_pretrained(model)):
        return
    try:
        importlib.import_module(DELTA_NET_KERNELS)
    except Exception as error:  # transformers takes any of them for "not installed"
        raise ConfigError(
            f"shared.model: {model} has gated delta nets; found no usable flash-linear-attention "
            f'({type(error).__name__}: {error}), wanted it for learner.device = "cuda": without '
            "its kernels 16k tokens take about 20 times as long (an estimate). Install "
            "flash-linear-attention>=0.6 with triton>=3.7.1 (`make setup DEVICE=cuda`), or set "
            "learner.kernels.slow_delta_net = true"
        ) from error


def has_delta_nets(config: Any) -> bool:
    """Whether a checkpoint's language model has layers of that type."""
    return DELTA_NET in (getattr(config.get_text_config(), "layer_types", None) or ())


def compile_layers(
    policy: Policy, settings: Kernels, *, device: torch.device, backend: str = "inductor"
) -> int:
    """torch.compile decoder layers if `learner.kernels.compile` says so; returns how many.

    Before `shard_model`, and a layer's forward alone: FSDP's hooks and gradient checkpointing stay
    around the compiled code, where they are ordinary Python. All layers share that code, and
    lengths are symbols in it: 4 layers of Qwen3-VL-4B at 16k tokens took .315 s instead of .365
    (checkpointed, one H200, a prototype in which attention was compiled too).

    Attention stays between two compiled pieces: it loops over segments and blocks, of which each
    layout has other ones, and what it calls are kernels that a compiler leaves alone.

    Layers with a gated delta net stay as they are: compiled, their backward failed on a view
    (torch 2.13, CPU), and most of their time is in kernels that a compiler leaves alone.
    """
    if settings.compile == "off" or (settings.compile == "auto" and device.type != "cuda"):
        return 0
    prefix.keep_uncompiled(policy.model.model)
    layers = [layer for layer in policy.decoder_layers if not hasattr(layer, "linear_attn")]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)
    return len(layers)
