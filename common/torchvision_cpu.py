"""Let PyPI's torchvision (a CUDA build) import beside CPU-only torch.

On a machine whose only wheel source is PyPI, torchvision's compiled ops cannot load and its import
dies while it registers fake kernels for two of them. Declaring those two op schemas first is
enough: everything Qwen's processors use (resize, normalise) is plain Python. A CPU or working CUDA
build of torchvision is left alone.
"""

import importlib.metadata
from typing import Any

_library: Any = None
"""Keeps the schemas registered: they go when the library object goes."""


def install() -> None:
    """Declare two op schemas if this torchvision cannot; call before importing it. Idempotent."""
    global _library
    import torch

    if _library is not None or torch.version.cuda is not None:
        return
    if "+cpu" in importlib.metadata.version("torchvision"):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
