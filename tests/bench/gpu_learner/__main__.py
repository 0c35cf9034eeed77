"""The learner at a real size, on one GPU: `python -m tests.bench.gpu_learner [--tiny]`.

Random weights in the shapes of Qwen3-VL-4B and Qwen3.5-4B, one group of 16k prompt tokens and eight
answers, bfloat16 on float32 masters. For each:

    step        seconds of a whole step (AdamW included), every layer recomputed; tokens a second,
                peak memory, and MFU: model FLOPs without recomputation over the card's dense
                bfloat16 peak
    backward    the same up to the gradients, before AdamW has states: what a rank does that shares
                them with many; with every layer recomputed, every second one and none
    alone       seconds of the same group with every answer by itself, likewise
    gradients   shared against alone, relative, beside repeating either

Needs some 100 GB for 4B; what does not fit, or whose kernels are missing, is said and left out.
Needs torch and transformers; neither vLLM nor Redis, no network. `--tiny` tries all of it on the
CPU; `--json FILE` also writes the result there.
"""

import argparse
import datetime
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from common import config
from services.learner import parallel
from services.learner.batching.batch import TrainBatch, collate
from services.learner.model import kernels
from services.learner.model import policy as policy_module
from services.learner.model.policy import Policy, load_policy, recompute_layers
from services.learner.objective.advantage import sample_advantages
from services.learner.parallel import Ranks
from services.learner.step import Stepper
from tests.bench.gpu_learner.shapes import (
    REAL,
    TINY,
    Shape,
    frames_of,
    group_of,
    model_flops,
    write_config,
)
from tests.bench.spread import Spread, rounded
from tests.fixtures.learner.groups import limits, one_each

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H20": 148e12, "A100": 312e12}
"""Dense bfloat16, by the first name found in the card's."""


class Gradients(Stepper):
    """A step that ends before the update."""

    __slots__ = ()

    def _update(self, number: int) -> dict[str, float]:
        return {"learner/updates": 0.0, "learner/skipped_steps": 0.0}


def measure(shape: Shape, *, ranks: Ranks, repeats: int, compile_layers: str) -> dict[str, Any]:
    """One shape."""
    device = ranks.device
    with tempfile.TemporaryDirectory() as name:
        folder = write_config(shape, Path(name))
        settings = config.Kernels.model_validate({"compile": compile_layers})
        kernels.require_delta_net(folder, device=device, settings=settings)
        policy = drawn_policy(shape, folder, device=device)
        linear = sum(p.numel() for p in policy.decoder_layers.parameters() if p.ndim == 2)
        parameters = sum(p.numel() for p in policy.parameters())
        compiled = kernels.compile_layers(policy, settings, device=device)
        parallel.shard_model(policy, ranks=ranks, compute_dtype=torch.bfloat16)
        run = run_settings(device)
        made = {"start": folder, "ranks": ranks, "load_frames": lambda _: frames_of(shape)}
        stepper, backward = (kind.of(run, policy, **made) for kind in (Stepper, Gradients))
    shared, alone, prompt_tokens = batches_of(shape)
    flops = model_flops(shape, linear_weights=linear, prompt_tokens=prompt_tokens)
    tokens = prompt_tokens + shape.answers * (shape.answer_tokens - 1)
    peak = peak_flops(device)

    def figures(call: Callable[[], object]) -> dict[str, Any]:
        seconds, peak_gib = timed(device, call, repeats=repeats)
        return {
            "s": asdict(seconds),
            "tokens_per_s": tokens / seconds.median,
            "mfu": None if peak is None else flops / seconds.median / peak,
            "peak_gib": peak_gib,
        }

    def up_to_gradients(every: int) -> Any:
        recompute_layers(policy.decoder_layers, every=every)
        policy.zero_grad()
        try:
            backward.step(shared, number=1)  # compiled code, kernels' choices, the allocator
            return figures(lambda: backward.step(shared, number=1))
        except torch.OutOfMemoryError:
            return "does not fit"

    gradients, alone_s = compared(policy, backward, shared, alone)
    recomputed = {f"every_{n}": up_to_gradients(n) for n in (1, 2)}
    recomputed["none"] = up_to_gradients(0)
    recompute_layers(policy.decoder_layers, every=1)
    policy.zero_grad()
    stepper.step(shared, number=1)
    return {
        "parameters": parameters,
        "compiled_layers": compiled,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "model_tflop": flops / 1e12,
        "step": figures(lambda: stepper.step(shared, number=2)),
        "backward": recomputed,
        "alone_backward_s": alone_s,
        "gradients": gradients,
    }


def drawn_policy(shape: Shape, folder: Path, *, device: torch.device) -> Policy:
    """`load_policy` as it is, but for the weights: drawn on the device, not read."""
    import transformers

    def drawn(path: Path, *, dtype: torch.dtype, attn_implementation: str) -> Any:
        found = transformers.AutoConfig.from_pretrained(path)
        torch.manual_seed(0)
        with device:
            return transformers.AutoModelForImageTextToText.from_config(
                found, dtype=dtype, attn_implementation=attn_implementation
            )

    with (
        mock.patch.object(transformers.AutoModelForImageTextToText, "from_pretrained", drawn),
        mock.patch.object(policy_module, "refuse_unfit_model"),  # there is no file
    ):
        return load_policy(
            folder,
            device=device,
            recomputed=1.0,
            load_frames=lambda _: frames_of(shape),
        )


def run_settings(device: torch.device) -> config.Run:
    """A run of nothing but a learner."""
    shared = {"run_id": "bench", "model": "random", "dtype": "bfloat16"}
    learner = {"rows": "rows.jsonl", "run_dir": "run", "steps": 1, "device": device.type}
    return config.parse({"shared": shared, "learner": learner}, environ={})


def batches_of(shape: Shape) -> tuple[TrainBatch, TrainBatch, int]:
    """The group, its answers one by one, and its prompt's length."""
    group = group_of(shape)
    advantages = sample_advantages(group, strategy="shaping", settings=config.Advantage())
    pairs = zip(group.samples, group.verdicts, strict=True)
    singles = [
        group.model_copy(
            update={"prompt_id": f"p{number}", "samples": (sample,), "verdicts": (verdict,)}
        )
        for number, (sample, verdict) in enumerate(pairs)
    ]
    each = [[advantage] for advantage in advantages]
    return (
        collate([group], [advantages], limits=limits()),
        collate(singles, each, limits=one_each(singles)),
        len(group.prompt_token_ids),
    )


def compared(
    policy: Policy, backward: Gradients, shared: TrainBatch, alone: TrainBatch
) -> tuple[dict[str, float], float]:
    """Relative differences of gradients, each way run twice; seconds of the second one alone."""

    def run(batch: TrainBatch) -> None:
        policy.zero_grad()
        backward.step(batch, number=1)

    def kept() -> dict[str, Tensor]:
        return {name: gradient.clone() for name, gradient in gradients_of(policy)}

    run(shared)
    first = kept()
    run(shared)
    found = {"shared_again": apart(policy, first)}
    run(alone)
    found["shared_alone"] = apart(policy, first)
    first = kept()
    alone_s, _ = timed(backward.ranks.device, lambda: run(alone), repeats=1)
    return found | {"alone_again": apart(policy, first)}, alone_s.median


def gradients_of(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """One rank's DTensor is all of it."""
    for name, parameter in policy.named_weights():
        found = parameter.grad
        if found is not None:
            yield name, found.to_local() if isinstance(found, DTensor) else found


def apart(policy: Policy, wanted: dict[str, Tensor]) -> float:
    """|found - wanted| / |wanted| over all gradients."""
    found = gradients_of(policy)
    difference = sum(float((one - wanted[name]).square().sum()) for name, one in found)
    return math.sqrt(difference / sum(float(one.square().sum()) for one in wanted.values()))


def timed(
    device: torch.device, call: Callable[[], object], *, repeats: int
) -> tuple[Spread, float]:
    """Seconds, and GiB at the peak (0 on a CPU)."""
    cuda = device.type == "cuda"
    seconds = []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Spread.of(seconds), torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def peak_flops(device: torch.device) -> float | None:
    """None for cards we have no figure of."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return next((peak for card, peak in PEAK_FLOPS.items() if card in name), None)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--shapes", nargs="+", help="by name; default all")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    shapes = {shape.name: shape for shape in (TINY if options.tiny else REAL)}
    chosen = options.shapes or list(shapes)
    if unknown := set(chosen) - set(shapes):
        parser.error(f"--shapes: found {sorted(unknown)}, wanted some of {sorted(shapes)}")
    if not options.tiny and not torch.cuda.is_available():
        sys.stdout.write(
            "bench-gpu: found no CUDA device, the learner is not measured (--tiny tries it on the "
            "CPU)\n"
        )
        return 0
    if options.tiny:
        torch.set_num_threads(1)
    ranks = parallel.start_ranks("cpu" if options.tiny else "cuda", timeout_s=60)
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": "CPU" if options.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "repeats": options.repeats,
    }
    failed = False
    for shape in (shapes[name] for name in chosen):
        try:
            found: Any = measure(
                shape, ranks=ranks, repeats=options.repeats, compile_layers=options.compile
            )
        except (RuntimeError, ValueError) as error:  # device time is dear: go on with the next
            found, failed = f"{type(error).__name__}: {error}", True
        report[shape.name] = found = rounded(found)
        sys.stdout.write(f"{shape.name}: {json.dumps(found)}\n")
        sys.stdout.flush()
        if not options.tiny:
            torch.cuda.empty_cache()
    ranks.close()
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
