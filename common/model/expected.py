"""`config.json` of a model → the tensors that it loads, from a model without memory.

Learner and replica ask before they load (`refuse_unfit_model`): transformers draws missing tensors
at random, vLLM looks for other ones. transformers builds the model on the meta device, which
takes a second or two and no memory, at any size.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.model import torchvision_cpu
from common.model.tensors import Expected, refuse_unfit

ARCHITECTURES = (
    "Qwen3VLForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
)
"""What the learner trains; a replica may serve others, which are not looked at."""

_OLDER_TOWER = re.compile(r"^visual\.")
_OLDER_TEXT = re.compile(r"^model\.(?!language_model\.|visual\.)")


def refuse_unfit_model(folder: Path, *, knob: str = "shared.model") -> None:
    """Check the tensors of a folder against its config.json; unknown and quantized models pass.

    Raises:
        ConfigError: tensors are missing, unexpected, misshapen or mis-tied; one line names them.
    """
    torchvision_cpu.install()
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    known = (config.architectures or [""])[0] in ARCHITECTURES
    if known and getattr(config, "quantization_config", None) is None:
        refuse_unfit(folder, expected_of(config), knob=knob)


def expected_of(config: Any) -> Expected:
    """What a model of this configuration loads."""
    model = empty_model(config)
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    everywhere = dict(model.state_dict(keep_vars=True))
    architecture = type(model).__name__
    return Expected(
        architecture=architecture,
        shapes={name: tuple(tensor.shape) for name, tensor in everywhere.items()},
        tied={
            name: names[id(tensor)]
            for name, tensor in everywhere.items()
            if names.get(id(tensor), name) != name
        },
        renamed=renamed_of(architecture),
    )


def renamed_of(architecture: str) -> Callable[[str], str]:
    """Name of a tensor in a file → its name in a model of this architecture."""
    return _of_qwen2_5_vl if architecture.startswith("Qwen2_5_VL") else str


def empty_model(config: Any, **settings: Any) -> Any:
    """A model of this configuration on the meta device: all shapes, no values.

    `settings`: as for transformers' `from_config`, such as `dtype` and `attn_implementation`.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, **settings)


def _of_qwen2_5_vl(name: str) -> str:
    """Checkpoints of it have names from before its language model was a module of its own."""
    return _OLDER_TEXT.sub("model.language_model.", _OLDER_TOWER.sub("model.visual.", name))
