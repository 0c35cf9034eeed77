"""The weight path over NCCL, on one GPU: `python -m tests.bench.gpu_publishing [--tiny]`.

The learner's snapshot and delivery and the replica's receiver, in two and three processes of one
card: each counts as a host of its own, so they meet over loopback sockets, and they share the
card's time. Shapes of a 4B model in bfloat16; 70 GB of GPU memory.

    full, delta   seconds of capture and until the digest is verified, beside a bare broadcast;
                  pause: copying from the device staging into the model
    kill, freeze  one of two receivers, in mid-broadcast: until the other has the next version

Needs torch, numpy, pydantic and xxhash; neither vLLM nor Redis, no network, and no HTTP. `--tiny`
tries all of it on the CPU, over gloo, in seconds; `--json FILE` also writes the result there.
"""

import argparse
import asyncio
import datetime
import json
import logging
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common.weights.group import versions
from common.weights.layout import DEFAULT_BUCKET_BYTES
from tests.bench.gpu_publishing.learner import DEADLINE_S
from tests.bench.gpu_publishing.measures import measure_fault, measure_transfer
from tests.bench.publishing.bare import be_a_host_of_its_own
from tests.bench.publishing.weights import Weights, megabytes
from tests.bench.spread import rounded

logger = logging.getLogger(__name__)

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 36, 2560, 9728, 151_936
"""Of Qwen3-VL-4B's language model."""
TINY_MB, TINY_BUCKET_BYTES = 128, 2**20
EVENTS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


def shapes_4b() -> list[tuple[int, ...]]:
    """4.0 G values."""
    layer = [
        *((4096, HIDDEN), (1024, HIDDEN), (1024, HIDDEN), (HIDDEN, 4096)),
        *((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)),
        *((HIDDEN,), (HIDDEN,), (128,), (128,)),
    ]
    return [(VOCABULARY, HIDDEN), *layer * LAYERS, (HIDDEN,)]


async def measure(*, tiny: bool, repeats: int, report: dict[str, Any]) -> bool:
    """Everything, into `report` as it comes; False if a part of it broke."""
    # With its number: torch asks for one where a thread chooses its device.
    device = torch.device("cpu") if tiny else torch.device("cuda", 0)
    be_a_host_of_its_own("learner")
    weights = Weights(megabytes(TINY_MB) if tiny else shapes_4b(), device=device)
    bucket_bytes = TINY_BUCKET_BYTES if tiny else DEFAULT_BUCKET_BYTES
    keep(
        report,
        date=datetime.date.today().isoformat(),
        device="CPU" if tiny else torch.cuda.get_device_name(),
        torch=torch.__version__,
        wire=versions(device),
        whole_bytes=weights.num_bytes,
        repeats=repeats,
        deadline_s=DEADLINE_S,
    )
    how: dict[str, Any] = {"device": device, "bucket_bytes": bucket_bytes, "repeats": repeats}
    broken = []
    for part in ("full", "delta", *EVENTS):
        try:
            keep(report, **await measure_part(part, weights, how))
        except Exception:  # device time is dear: the other parts still give their figures
            logger.exception("%s broke", part)
            broken.append(part)
    return not broken


async def measure_part(part: str, weights: Weights, how: dict[str, Any]) -> dict[str, Any]:
    """One row of the module's table."""
    if part not in EVENTS:
        return {part: asdict(await measure_transfer(weights, publish=part, **how))}
    fault = await measure_fault(weights, event=EVENTS[part], **how)
    return {
        f"{part}_s": asdict(fault.next_version_s),
        f"{part}_undisturbed_s": fault.undisturbed_s,
        f"{part}_after_s": fault.after_s,
    }


def keep(report: dict[str, Any], **found: Any) -> None:
    """Add to the report, and say it."""
    for name, value in found.items():
        report[name] = value = rounded(value)
        sys.stdout.write(f"{name}: {json.dumps(value)}\n")
    sys.stdout.flush()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="on the CPU, over gloo")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        sys.stdout.write(
            "bench-gpu: found no CUDA device, nothing measured (--tiny tries it on the CPU)\n"
        )
        return 0
    logging.disable(logging.WARNING)  # receivers are meant to fail
    report: dict[str, Any] = {}
    try:
        done = asyncio.run(measure(tiny=options.tiny, repeats=options.repeats, report=report))
    finally:
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
