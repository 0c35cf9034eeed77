"""The model of a run: its files, its tensors, what the longest clips take of a card.

Run -> folder, Architecture -> findings
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.config import Run
from common.errors import ConfigError
from common.model.architecture import Architecture
from common.model.expected import refuse_unfit_model
from common.model.folder import fetched
from jobs.doctor.finding import Finding, one_line
from jobs.doctor.machine import Gpu
from jobs.recipes.plan import length_misfits, memory_misfits, plan
from jobs.recipes.times import Fleet

AREA = "model"


def files(run: Run) -> tuple[Path | None, list[Finding]]:
    """The folder, if it can be loaded, and what is to be said of its files.

    An id of the hub is fetched first, as a run would.
    """
    try:
        folder = fetched(run.shared.model, knob="shared.model").path
    except ConfigError as error:
        cure = "shared.model: a whole checkpoint folder, or an id of the hub"
        return None, [Finding(AREA, "files", "fail", one_line(str(error)), cure)]
    return folder, [Finding(AREA, "files", "ok", str(folder))]


def tensors(folder: Path, *, architecture: Architecture) -> Iterator[Finding]:
    """All tensors of the model, no other, tied as config.json says."""
    try:
        refuse_unfit_model(folder)
    except ConfigError as error:
        cure = "get the folder whole again, or the config.json that belongs to it"
        yield Finding(AREA, "tensors", "fail", one_line(str(error)), cure)
        return
    tied = "tied to the embedding" if architecture.tied else "of its own"
    found = f"{architecture.parameters / 1e6:,.1f} M parameters, output head {tied}"
    yield Finding(AREA, "tensors", "ok", found)


def fits(run: Run, *, architecture: Architecture, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Longest prompt and memory (estimates, as `tempsamp plan`), on the cards of this machine.

    On a CPU lengths alone are judged. Cards: all of this machine are taken for learner ranks, and
    one replica gets as many of them again.
    """
    # Times are not looked at, so speeds do not matter.
    fleet = Fleet(
        gpu_tflops=1.0,
        gpu_bandwidth_gbs=1.0,
        learner_gpus=max(1, len(gpus)),
        rollout_gpus=run.rollout.tensor_parallel,
        gpu_memory_gb=min((gpu.memory_bytes for gpu in gpus), default=0) / 1e9 or 96.0,
    )
    made = plan(run, architecture=architecture, fleet=fleet)
    too_long = list(length_misfits(made))
    # Rows whose clips are shorter train as they should; the others are refused and listed.
    yield from (Finding(AREA, "longest prompt", "warn", *halves(line)) for line in too_long)
    if not too_long:
        found = f"{made.tokens.prompt:,} tokens of at most {run.shared.max_prompt_tokens:,}"
        yield Finding(AREA, "longest prompt", "ok", found)
    if run.learner.device == run.rollout.device == "cpu" or not gpus:
        return
    too_large = list(memory_misfits(made))
    yield from (Finding(AREA, "card memory", "warn", *halves(line)) for line in too_large)
    if not too_large:
        found = f"{made.rank.peak / 1e9:.1f} GB a rank at most, on {len(gpus)} ranks"
        yield Finding(AREA, "card memory", "ok", found)


def halves(line: str) -> tuple[str, str]:
    """What `tempsamp plan` says of a misfit: found and wanted, then the knobs."""
    found, _, cure = line.rpartition(": ")
    return found, cure
