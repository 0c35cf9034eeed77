"""A step dump → the same numbers in float64 on a CPU, and where they first differ (pure but reads).

    groups      -> advantages                    `objective.advantage`
    counts      -> denominator                   `objective.loss`
    checkpoint  -> log-probabilities             `model.policy`, only where a checkpoint is given
    inputs      -> loss, its gradient, figures   `objective.loss`

Each quantity is recomputed from what was recorded of its inputs, so the first one that differs is
where the fault lies, and what comes after it is judged by itself.
"""

import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common import config
from common.errors import ConfigError
from common.messages import ClipRef, ScoredGroup
from common.video.loader import ClipLoader
from services.learner.batching.batch import MicroBatch
from services.learner.model.policy import Policy, load_policy
from services.learner.objective import loss as loss_functions
from services.learner.objective.advantage import step_advantages
from services.learner.probe import BOUNDS
from services.learner.watching.dump import FORMAT, gradient_of

KEYS = frozenset({"config", "world_size", "advantages", "figures"})
"""Of step.json."""
FUNCTIONS = {
    name: function
    for name, function in inspect.getmembers(loss_functions, inspect.isfunction)
    if function.__module__ == loss_functions.__name__
}
"""What a dump may name."""
RELATIVE = 1e-4
"""Of the largest value of a quantity: float32 sums of some 10^5 terms against float64 ones."""
ABSOLUTE = 1e-5
"""Of scalars: a loss whose advantages cancel is near zero and all rounding."""


@dataclass(frozen=True)
class Quantity:
    """One thing that was recorded, and what it comes to now."""

    name: str
    recorded: float
    recomputed: float
    difference: float
    """The largest, over elements; inf where shapes differ or a number is none."""
    allowed: float

    @property
    def agrees(self) -> bool:
        """Within what is allowed."""
        return self.difference <= self.allowed


def replay(folder: Path, *, model: Path | None = None) -> Iterator[Quantity]:
    """All quantities of a dump, in the order in which a step computes them.

    Args:
        folder: `<run_dir>/steps/step-N`.
        model: Hugging Face folder of the weights that the step began with; None: log-probabilities
            are taken as recorded.

    Raises:
        ConfigError: it is no dump, or one that is not whole.
    """
    facts = _facts(folder)
    run = _run(folder, facts)
    groups = _groups(folder / "groups.jsonl", count=len(facts["advantages"]))
    yield from _advantages(facts, groups, run)
    policy = None if model is None else _policy(model, run)
    ranks = [_calls(folder / f"rank-{rank}.safetensors") for rank in range(facts["world_size"])]
    losses: list[Quantity] = []
    for rank, calls in enumerate(ranks):
        for number, (call, tensors) in enumerate(calls):
            where = f"rank {rank} call {number} {call['function']}"
            if policy is not None and "micro_batch" in call:
                yield _logprobs(where, call, tensors, policy, run)
            found = list(_call(where, call, tensors))
            yield from found
            losses += [item for item in found if item.name == f"{where}: loss"]
    total = math.fsum(item.recomputed for item in losses)
    if _updates(facts["config"]["learner"]) == 1:
        yield _compared("step: policy_loss", facts["figures"]["learner/policy_loss"], total)


def _advantages(
    facts: Mapping[str, Any], groups: Sequence[ScoredGroup], run: config.Run
) -> Iterator[Quantity]:
    strategy, settings = run.shared.strategy, run.learner.advantage
    recomputed = step_advantages(groups, strategy=strategy, settings=settings).by_group
    for group, recorded, found in zip(groups, facts["advantages"], recomputed, strict=True):
        yield _compared(f"advantages of {group.prompt_id}", _numbers(recorded), _numbers(found))


def _numbers(advantages: Sequence[float | None]) -> Tensor:
    """None, a sample that is not trained on, counts as a number that no advantage has."""
    return torch.tensor([1e9 if a is None else a for a in advantages], dtype=torch.float64)


def _call(where: str, call: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Quantity]:
    function = FUNCTIONS[call["function"]]
    args = [_restored(item, tensors) for item in call["args"]]
    kwargs = {name: _restored(item, tensors) for name, item in call["kwargs"].items()}
    if "gradient" in call:
        args[0].requires_grad_(True)
    result = function(*args, **kwargs)
    recorded = call["result"]
    parts = (
        zip(recorded, result, strict=True) if isinstance(recorded, list) else [(recorded, result)]
    )
    for was, now in parts:
        if isinstance(was, dict) and "metrics" in was:
            for name, value in now.metrics().items():
                if name in was["metrics"]:
                    yield _compared(f"{where}: {name}", was["metrics"][name], value)
        else:
            name = "loss" if "gradient" in call else "value"
            yield _compared(f"{where}: {name}", _restored(was, tensors), now)
    if "gradient" in call:
        gradient = gradient_of(result, args[0])
        yield _compared(
            f"{where}: gradient by log-probabilities",
            _restored(call["gradient"], tensors),
            torch.zeros_like(args[0]) if gradient is None else gradient,
        )


def _logprobs(
    where: str,
    call: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    policy: Policy,
    run: config.Run,
) -> Quantity:
    fields = {
        name: _restored(item, tensors, exact=True) for name, item in call["micro_batch"].items()
    }
    for name in ("clips", "prompt_tokens"):
        fields[name] = tuple(fields[name])
    fields["answer_tokens"] = tuple(tuple(row) for row in fields["answer_tokens"])
    with torch.no_grad():
        found_GSR = policy(MicroBatch(**fields)).logprobs_GSR
    mask_GSR = fields["answer_mask_GSR"]
    recorded_GSR = _restored(call["args"][0], tensors)
    return _compared(
        f"{where}: log-probabilities",
        recorded_GSR[mask_GSR],
        found_GSR[mask_GSR],
        allowed=BOUNDS[run.shared.dtype][0],
    )


def _compared(
    name: str, recorded: Tensor | float, recomputed: Tensor | float, *, allowed: float | None = None
) -> Quantity:
    was, now = (torch.as_tensor(value).detach().double() for value in (recorded, recomputed))
    largest = float(torch.cat([was.flatten(), now.flatten()]).abs().max()) if was.numel() else 0.0
    if allowed is None:
        allowed = RELATIVE * largest + (ABSOLUTE if was.ndim == 0 else 0.0)
    difference = math.inf
    if was.shape == now.shape:
        gap = (was - now).abs()
        # Both the same infinity differ by nothing, one that is no number by everything.
        gap = torch.where(was == now, 0.0, gap).nan_to_num(nan=math.inf, posinf=math.inf)
        difference = float(gap.max()) if gap.numel() else 0.0
    return Quantity(name, _shown(was), _shown(now), difference, allowed)


def _shown(value: Tensor) -> float:
    """A scalar itself, of a tensor its norm."""
    return float(value) if value.ndim == 0 else float(torch.linalg.vector_norm(value))


def _restored(item: Any, tensors: Mapping[str, Tensor], *, exact: bool = False) -> Any:
    """A recorded value; floating tensors in float64 unless `exact`."""
    if isinstance(item, list):
        return [_restored(one, tensors, exact=exact) for one in item]
    if not isinstance(item, dict):
        return item
    if "model" in item:
        models = {"ClipRef": ClipRef, **{name: getattr(config, name) for name in config.__all__}}
        return models[item["model"]].model_validate(item["fields"])
    tensor = tensors[item["tensor"]]
    return tensor.double() if tensor.is_floating_point() and not exact else tensor


def _updates(settings: Mapping[str, Any]) -> int:
    """How often the step used its batch: with several updates its loss is no sum over all calls."""
    tables = [settings, *(table for table in settings.values() if isinstance(table, dict))]
    return max(int(table.get("updates_per_batch", 1)) for table in tables)


def _policy(model: Path, run: config.Run) -> Policy:
    loader = ClipLoader.of(run.shared.video)
    return load_policy(model, dtype=torch.float64, load_frames=loader.load)


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "step.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: found no step.json that can be read ({error}), wanted a step dump, "
            "<run_dir>/steps/step-N (learner.dump_steps)"
        ) from error
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise ConfigError(f"{folder}: found format {found!r}, wanted {FORMAT}")
    if missing := sorted(KEYS - facts.keys()):
        raise ConfigError(f"{folder}/step.json: found no {', '.join(missing)}, wanted all of them")
    return dict(facts)


def _run(folder: Path, facts: Mapping[str, Any]) -> config.Run:
    try:
        return config.Run.model_validate(facts["config"])
    except ValidationError as error:
        raise ConfigError(
            f"{folder}/step.json: found a config of another version ({_first(error)}), wanted this "
            "one's: replay it with the version that wrote it"
        ) from error


def _groups(path: Path, *, count: int) -> list[ScoredGroup]:
    try:
        lines = path.read_bytes().splitlines()
        groups = [ScoredGroup.model_validate_json(line) for line in lines]
    except (OSError, ValidationError) as error:
        why = _first(error) if isinstance(error, ValidationError) else error.strerror
        raise ConfigError(
            f"{path}: found groups that cannot be read ({why}), wanted those of a step dump"
        ) from error
    if len(groups) != count:
        raise ConfigError(f"{path}: found {len(groups)} groups, wanted the step's {count}")
    return groups


def _calls(path: Path) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    try:
        with safe_open(path, framework="pt") as file:
            calls = json.loads(file.metadata()["calls"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: found no tensors of a step dump: {error}") from error
    return [(call, tensors) for call in calls]


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
