"""Checkpoints: model, optimizer, RNG and run state in one folder, a Hugging Face export beside.

    <run_dir>/checkpoints/step-000050/
        shards/         torch.distributed.checkpoint: model and optimizer, any number of ranks
        run_state.json  step, version, feed, intake, RNG: everything else a resumed run needs
        config.json     the resolved config, secrets masked
        hf/             the policy as a Hugging Face checkpoint, ready for rollout and evaluation

A folder becomes visible by one rename once it is complete. Groups are acknowledged in Redis only
after the checkpoint that contains them (`train`).
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from common import config
from common.errors import ConfigError
from common.model.checks import SETTINGS
from services.learner.feed import FeedState
from services.learner.intake import IntakeState
from services.learner.parallel import Ranks, whole_weights
from services.learner.policy import Policy

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{6,})")


class RunState(BaseModel):
    """What a resumed run needs beside tensors."""

    model_config = ConfigDict(extra="forbid")

    step: int
    """Optimizer steps done; also the policy version of the saved weights."""
    feed: FeedState
    intake: IntakeState
    rng: str
    """State of torch's CPU generator, hex."""


class Checkpoints:
    """The checkpoints of one run. Construct and call on every rank."""

    def __init__(
        self,
        run: config.Run,
        *,
        start: Path,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
    ) -> None:
        """`start`: folder of the model that the run began with."""
        self._run = run
        self._start = start
        self._policy = policy
        self._optimizer = optimizer
        self._ranks = ranks
        self._folder = run.learner.run_dir / "checkpoints"

    def save(self, state: RunState | None) -> None:
        """Write a checkpoint and drop the oldest ones beyond `keep_checkpoints`; a collective.

        Args:
            state: rank 0's run state; the others pass None.
        """
        step = self._ranks.broadcast_json(state.step if state else None)
        final = self._folder / f"step-{step:06d}"
        partial = final.with_suffix(".partial")
        if self._ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._ranks.barrier()
        save_sharded(self._tensors(), checkpoint_id=partial / "shards")
        self._export(partial / "hf")
        if state is not None:
            (partial / "run_state.json").write_text(state.model_dump_json(), encoding="utf-8")
            (partial / "config.json").write_text(config.dump(self._run), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in list_checkpoints(self._folder)[: -self._run.learner.keep_checkpoints]:
                shutil.rmtree(old)
            logger.info("checkpoint", extra={"step": state.step, "path": str(final)})
        self._ranks.barrier()

    def restore(self) -> RunState | None:
        """Load the latest checkpoint into model and optimizer; None when there is none."""
        found = list_checkpoints(self._folder)
        if not found:
            return None
        tensors = self._tensors()
        load_sharded(tensors, checkpoint_id=found[-1] / "shards")
        set_state_dict(
            self._policy,
            self._optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
            options=StateDictOptions(strict=True),
        )
        state = RunState.model_validate_json((found[-1] / "run_state.json").read_bytes())
        torch.set_rng_state(torch.tensor(list(bytes.fromhex(state.rng)), dtype=torch.uint8))
        logger.info("resumed", extra={"step": state.step, "path": str(found[-1])})
        return state

    def _tensors(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self._policy, self._optimizer)
        return {"model": model, "optimizer": optimizer}

    def _export(self, folder: Path) -> None:
        """All ranks gather; rank 0 writes."""
        dtype = getattr(torch, self._run.shared.dtype)
        whole = dict(whole_weights(self._policy, dtype=dtype, ranks=self._ranks))
        if not self._ranks.is_main:
            return
        self._policy.model.save_pretrained(folder, state_dict=whole)
        carry_over(self._start, folder)


def carry_over(start: Path, folder: Path) -> None:
    """Copy tokenizer, processor and generation settings from the start checkpoint to an export.

    Not its index of weights: the export has other files, and vLLM would look for those.
    """
    for pattern in SETTINGS:
        for file in start.glob(pattern):
            is_index = file.name.endswith(".safetensors.index.json")
            if not is_index and not (folder / file.name).exists():
                shutil.copy2(file, folder / file.name)


def rng_state() -> str:
    """torch's CPU generator, as `RunState.rng` keeps it."""
    return bytes(torch.get_rng_state().tolist()).hex()


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def refuse_existing(run_dir: Path) -> None:
    """A fresh run must not continue in the folder of an old one.

    Raises:
        ConfigError: there are checkpoints; names the folder and how to resume.
    """
    found = list_checkpoints(run_dir / "checkpoints")
    if found:
        raise ConfigError(
            f"learner.run_dir: found {found[-1].name} in {run_dir}, wanted a folder without "
            "checkpoints: resume (--resume), or choose another run_dir"
        )
