"""What the loss of a step consumed and gave, on disk: `StepDumps.step(n)` → `tempsamp replay`.

    <run_dir>/steps/step-000020/
        rank-0.safetensors   tensors of every noted call; its metadata says which is what (JSON)
        groups.jsonl         the groups of the step, as they came from Redis
        step.json            config, advantages, figures; written last: without it there is no dump

`step.py` notes its calls of `objective` functions, whatever their arguments are called, so a new
argument needs nothing here. Tensors and JSON alone: nothing that could run when it is read.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from common import config
from common.errors import CheckpointError
from common.messages import ScoredGroup
from services.learner.batching.batch import MicroBatch
from services.learner.state import durable

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")


class StepRecord:
    """The noted calls of one step on one rank."""

    def __init__(self, path: Path | None) -> None:
        """`path`: of the file to write; None: this step is not due and nothing is noted."""
        self._path = path
        self._tensors: dict[str, Tensor] = {}
        self._calls: list[dict[str, Any]] = []

    def noting(
        self, function: Callable[P, R], micro_batch: MicroBatch | None = None
    ) -> Callable[P, R]:
        """`function`, whose arguments and result are noted when it is called.

        Of a tensor result that depends on the first argument, the gradient is noted too.
        """
        if self._path is None:
            return function

        def noted(*args: P.args, **kwargs: P.kwargs) -> R:
            result = function(*args, **kwargs)
            key = f"{len(self._calls)}"
            call: dict[str, Any] = {
                "function": function.__name__,
                "args": [self._kept(f"{key}.args.{n}", item) for n, item in enumerate(args)],
                "kwargs": {name: self._kept(f"{key}.{name}", v) for name, v in kwargs.items()},
                "result": self._kept(f"{key}.result", result),
            }
            gradient = gradient_of(result, args[0] if args else None)
            if gradient is not None:
                call["gradient"] = self._kept(f"{key}.gradient", gradient)
            if micro_batch is not None:
                call["micro_batch"] = {
                    field.name: self._kept(
                        f"{key}.batch.{field.name}", getattr(micro_batch, field.name)
                    )
                    for field in fields(micro_batch)
                }
            self._calls.append(call)
            return result

        return noted

    def write(self) -> None:
        """Leave what was noted; the others' files are there once the ranks have met again.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._path is None:
            return
        metadata = {"format": str(FORMAT), "calls": json.dumps(self._calls)}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save_file(self._tensors, self._path, metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"learner.dump_steps: {self._path}: {error}: make room and resume (--resume), with "
                "fewer dumps if need be (learner.dump_steps.keep)"
            ) from error

    def _kept(self, key: str, value: Any) -> Any:
        """JSON for a value; tensors are put aside."""
        if isinstance(value, Tensor):
            self._tensors[key] = value.detach().cpu().contiguous().clone()
            return {"tensor": key}
        if isinstance(value, BaseModel):
            return {"model": type(value).__name__, "fields": value.model_dump(mode="json")}
        if isinstance(value, tuple | list):
            return [self._kept(f"{key}.{n}", item) for n, item in enumerate(value)]
        if hasattr(value, "metrics"):
            return {"metrics": value.metrics()}
        return value


def gradient_of(result: Any, argument: Any) -> Tensor | None:
    """Of the first tensor in a result by a tensor argument; None where there is none."""
    loss = result[0] if isinstance(result, tuple) else result
    if not (isinstance(loss, Tensor) and isinstance(argument, Tensor)):
        return None
    if not (loss.requires_grad and argument.requires_grad):
        return None
    (gradient,) = torch.autograd.grad(loss, argument, retain_graph=True, allow_unused=True)
    return gradient


class StepDumps:
    """The dumps of a run, the newest `keep` of them."""

    def __init__(self, run: config.Run, *, rank: int) -> None:
        self._run, self._rank = run, rank
        self._folder = run.learner.run_dir / "steps"

    def step(self, number: int) -> StepRecord:
        """A record of a step, on every rank."""
        if not self._is_due(number):
            return StepRecord(None)
        return StepRecord(self._of(number) / f"rank-{self._rank}.safetensors")

    def finish(
        self,
        number: int,
        *,
        groups: Sequence[ScoredGroup],
        advantages: Sequence[Sequence[float | None]],
        figures: Mapping[str, float],
        world_size: int,
    ) -> None:
        """Rank 0, once all have written: complete a dump and drop the oldest beyond `keep`."""
        if not self._is_due(number):
            return
        folder = self._of(number)
        lines = "".join(f"{group.model_dump_json()}\n" for group in groups)
        durable.replace_text(folder / "groups.jsonl", lines)
        facts = {
            "format": FORMAT,
            "step": number,
            "world_size": world_size,
            "advantages": [list(numbers) for numbers in advantages],
            "figures": dict(figures),
            "config": json.loads(config.dump(self._run)),
        }
        durable.replace_text(folder / "step.json", json.dumps(facts, indent=1))
        for old in sorted(self._all(), key=_number)[: -self._run.learner.dump_steps.keep]:
            shutil.rmtree(old)
        logger.info("step dumped", extra={"step": number, "path": str(folder)})

    def _is_due(self, number: int) -> bool:
        every = self._run.learner.dump_steps.every
        return every > 0 and number % every == 0

    def _of(self, number: int) -> Path:
        return self._folder / f"step-{number:06d}"

    def _all(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
