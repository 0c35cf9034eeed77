"""Let PyPI's torchvision (a CUDA build) import beside CPU-only torch, in every Python process.

On a machine whose only wheel source is PyPI, torchvision's compiled ops cannot load and its import
dies while it registers fake kernels for two of them. Declaring those two op schemas first is
enough: everything Qwen's processors use (resize, normalise) is plain Python. A CPU build or a
working CUDA build of torchvision is left alone.

vLLM imports torchvision in helper processes that never see our code, so the environment itself has
to know: `python -m common.model.torchvision_cpu` (part of `make setup`) writes a `.pth` file that
calls `install()` at interpreter start. That costs well under a millisecond: torch is only imported
when somebody imports torchvision.
"""

import importlib.machinery
import importlib.metadata
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PTH = "tempsamp_torchvision.pth"
PTH_LINE = (
    'import importlib.util as u; u.find_spec("common") and '
    '__import__("common.model.torchvision_cpu").model.torchvision_cpu.install()\n'
)

_library: Any = None
"""Keeps the schemas registered: they go when the library object goes."""


class _DeclareOpsFirst(MetaPathFinder):
    """Steps aside after the first import of torchvision."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_ops()
        return None


def install() -> None:
    """Arrange that importing torchvision works in this process. Idempotent."""
    known = any(isinstance(finder, _DeclareOpsFirst) for finder in sys.meta_path)
    if not known and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _DeclareOpsFirst())


def _declare_ops() -> None:
    global _library
    import torch

    if torch.version.cuda is not None or "+cpu" in importlib.metadata.version("torchvision"):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "__main__":
    Path(sysconfig.get_path("purelib"), PTH).write_text(PTH_LINE, encoding="utf-8")
