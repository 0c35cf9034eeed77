"""Checkpoints: model, optimizer, RNG and run state in one folder, a Hugging Face export beside.

    <run_dir>/checkpoints/step-000050/
        shards/         torch.distributed.checkpoint: model and optimizer, any number of ranks
        run_state.json  step, version, feed, intake, RNG: everything else a resumed run needs
        config.json     the resolved config, secrets masked
        hf/             the policy as a Hugging Face checkpoint, ready for rollout and evaluation
        adapter/        with [learner.lora]: what `hf/` has merged, as PEFT's files
        manifest.json   what has to be there (`manifest.py`)

A folder becomes visible by one rename once it is complete and on the disk. Groups are acknowledged
in Redis only after the checkpoint that contains them (`train`). A resumed run takes the newest
whole checkpoint and puts damaged ones aside.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from common import config
from common.errors import CheckpointError, ConfigError, TempSampError
from common.model.checks import SETTINGS
from services.learner.feed import FeedState
from services.learner.intake import IntakeState
from services.learner.launch import OTHER_RANK_FAILED
from services.learner.model.policy import Policy
from services.learner.parallel import Ranks, whole_weights
from services.learner.state.best import best_so_far, name_best
from services.learner.state.compatible import refuse_changes
from services.learner.state.durable import sync, sync_tree
from services.learner.state.manifest import write_manifest
from services.learner.state.reading import list_checkpoints, list_damaged, loading, newest_whole

logger = logging.getLogger(__name__)


class RunState(BaseModel):
    """What a resumed run needs beside tensors."""

    model_config = ConfigDict(extra="forbid")

    step: int
    """Optimizer steps done; also the policy version of the saved weights."""
    feed: FeedState
    intake: IntakeState
    ledger_bytes: int
    """Size of `ledger.jsonl` with everything that this state contains."""
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

    def save(self, state: RunState | None, *, confirm: Callable[[], None] = lambda: None) -> None:
        """Write a checkpoint and drop the oldest ones that are not to be kept; a collective.

        Args:
            state: rank 0's run state; the others pass None.
            confirm: rank 0: raises when the run is no longer ours; called just before the rename.

        Raises:
            CheckpointError: it could not be written; earlier ones are as they were.
        """
        step = self._ranks.broadcast_json(state.step if state else None)
        final = self._folder / f"step-{step:06d}"
        partial = final.with_suffix(".partial")
        with self._together(partial):
            if self._ranks.is_main:
                confirm()
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with self._together(partial):
            # What fails on one rank fails here on all.
            save_sharded(self._tensors(), checkpoint_id=partial / "shards")
        whole = self._gathered()
        adapters = self._policy.adapters
        factors = adapters.whole_tensors() if adapters is not None else {}
        with self._together(partial):
            if state is not None:
                if adapters is not None:
                    adapters.save(partial / "adapter", factors, model=self._run.shared.model)
                self._complete(partial, state, whole)
                confirm()
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                sync(self._folder)
                self._drop_old()
                logger.info("checkpoint", extra={"step": state.step, "path": str(final)})

    def restore(self) -> RunState | None:
        """Load the newest whole checkpoint into model and optimizer; None when there is none.

        Raises:
            CheckpointError: there are some, and none is whole, or what was written whole cannot be
                loaded.
            ConfigError: it was trained with other settings (`compatible.py`), or cannot be read.
        """
        found = None
        with self._together():
            if self._ranks.is_main and (found := newest_whole(self._folder)) is not None:
                refuse_changes(found / "config.json", self._run)
        name = self._ranks.broadcast_json(found.name if found else None)
        if name is None:
            return None
        folder = self._folder / name
        tensors = self._tensors()
        with self._together(), loading(folder):
            state = RunState.model_validate_json((folder / "run_state.json").read_bytes())
            load_sharded(tensors, checkpoint_id=folder / "shards")
        _, ours = get_state_dict(self._policy, self._optimizer)
        set_state_dict(
            self._policy,
            self._optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=ours | tensors["optimizer"],
            options=StateDictOptions(strict=True),
        )
        torch.set_rng_state(torch.tensor(list(bytes.fromhex(state.rng)), dtype=torch.uint8))
        logger.info("resumed", extra={"step": state.step, "path": str(folder)})
        return state

    def tidy(self) -> None:
        """Rank 0, once the run is ours: remove what a crash left half written."""
        for partial in self._folder.glob("step-*.partial"):
            logger.info("unfinished checkpoint removed", extra={"path": str(partial)})
            shutil.rmtree(partial)

    @contextmanager
    def _together(self, partial: Path | None = None) -> Iterator[None]:
        """A failure inside ends all ranks; a collective. Rank 0 ends with the error."""
        failure: TempSampError | ConfigError | None = None
        try:
            yield
        except (TempSampError, ConfigError) as error:
            failure = error
        except (OSError, SafetensorError, CheckpointException) as error:
            failure = CheckpointError(self._cannot_write(error))
        failed = torch.tensor([float(failure is not None)])
        if self._ranks.all_reduce_max(failed).item() == 0:
            return
        if not self._ranks.is_main:
            if failure is not None:
                logger.error("no checkpoint", extra={"reason": str(failure)})
            raise SystemExit(OTHER_RANK_FAILED)
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise failure or CheckpointError(
            "learner.run_dir: no checkpoint: another rank's log says why"
        )

    def _cannot_write(self, error: BaseException) -> str:
        if isinstance(error, CheckpointException):  # torch's writer hides the system's reason
            error = next((cause for cause, _ in error.failures.values()), error)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        free_mb = shutil.disk_usage(self._run.learner.run_dir).free / 1e6
        return (
            f"learner.run_dir: no checkpoint in {self._folder}: {reason} (found {free_mb:,.0f} MB "
            "free); earlier ones are whole: make room and resume (--resume); "
            "learner.keep_checkpoints says how many are kept"
        )

    def _tensors(self) -> dict[str, Any]:
        """By parameter name; groups of parameters are settings (`compatible.py`), not state."""
        model, optimizer = get_state_dict(self._policy, self._optimizer)
        return {"model": model, "optimizer": {"state": optimizer["state"]}}

    def _gathered(self) -> dict[str, Any]:
        """The whole weights on rank 0; a collective."""
        dtype = getattr(torch, self._run.shared.dtype)
        return dict(whole_weights(self._policy, dtype=dtype, ranks=self._ranks))

    def _drop_old(self) -> None:
        """Rank 0: all but the newest ones, and the best one on held-out rows."""
        best = best_so_far(self._run.learner.run_dir) if self._run.learner.keep_best else None
        if best is not None:
            name_best(self._folder, best)
        kept = None if best is None else f"step-{best.step:06d}"
        for old in list_checkpoints(self._folder)[: -self._run.learner.keep_checkpoints]:
            if old.name != kept:
                shutil.rmtree(old)

    def _complete(self, partial: Path, state: RunState, whole: dict[str, Any]) -> None:
        """Rank 0: everything beside the shards, and all of it on the disk."""
        self._policy.model.save_pretrained(partial / "hf", state_dict=whole)
        carry_over(self._start, partial / "hf")
        (partial / "run_state.json").write_text(state.model_dump_json(), encoding="utf-8")
        (partial / "config.json").write_text(config.dump(self._run), encoding="utf-8")
        write_manifest(partial)
        sync_tree(partial)


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


def refuse_existing(run_dir: Path) -> None:
    """A fresh run must not continue in the folder of an old one.

    Raises:
        ConfigError: there are checkpoints, be it damaged ones; names the folder and how to resume.
    """
    found = [*list_damaged(run_dir / "checkpoints"), *list_checkpoints(run_dir / "checkpoints")]
    if found:
        raise ConfigError(
            f"learner.run_dir: found {found[-1].name} in {run_dir}, wanted a folder without "
            "checkpoints: resume (--resume), or choose another run_dir"
        )
