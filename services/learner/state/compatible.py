"""Which settings a resumed run may change: `refuse_changes(config.json, run)`.

Everything else decides what is learned, so a changed value would make the first half of a run and
its second half two different runs under one name.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import config
from common.errors import ConfigError

MAY_CHANGE = {
    "rollout": "replicas' own: what must agree with the learner stands in [shared]",
    "reward": "the reward service's own, as above",
    "shared.redis_url": "an address",
    "shared.reward_url": "an address",
    "shared.redis_user": "whom Redis knows us as",
    "shared.redis_ca": "a place",
    "shared.redis_allow_open": "who may reach Redis",
    "shared.redis_password": "a secret",
    "shared.token": "a secret",
    "shared.control_token": "a secret",
    "shared.generate_token": "a secret",
    "shared.score_token": "a secret",
    "shared.video.roots": "a place: clips are known by the digest of their file",
    "shared.video.allow_urls": "a place",
    "shared.video.downloads": "a place",
    "shared.video.cache": "a place: cached frames are the decoded ones",
    "shared.video.cache_mode": "what a missing cache entry means",
    "learner.preset": "a name for values that are compared themselves",
    "learner.rows": "a place: the file's digest is compared",
    "learner.run_dir": "a place",
    "learner.host": "an address",
    "learner.metrics_host": "an address",
    "learner.metrics_port": "an address",
    "learner.allow_remote": "who may read figures",
    "learner.steps": "how far, not which way",
    "learner.checkpoint_every": "what is kept of a run",
    "learner.keep_checkpoints": "what is kept of a run",
    "learner.keep_best": "what is kept of a run",
    "learner.early_stop.patience": "how far, not which way",
    "learner.probe_every": "a measurement",
    "learner.probe_max_gap_nats": "when a run gives up",
    "learner.probe_mean_gap_nats": "when a run gives up",
    "learner.dump_steps": "what is kept of a run",
    "learner.keep_groups": "what is kept of a run",
    "learner.tracking": "where figures go",
    "learner.validation": "a measurement",
    "learner.collective_timeout_s": "a deadline",
    "learner.publish_timeout_s": "a deadline",
    "learner.wait_for_replicas_s": "a deadline",
    "learner.min_replicas": "whom a step waits for",
    "learner.bucket_bytes": "how weights travel",
    "learner.publish": "how weights travel: the same bits",
    "learner.overlap_publish": "when weights travel: max_staleness bounds what that changes",
    "learner.weight_staging": "how weights travel",
    "learner.max_unusable_in_a_row": "when a run gives up",
    "learner.max_without_verdict_s": "when a run gives up",
    "learner.shard_within": "who holds what: the same sum, in another order",
    "learner.gradient_checkpointing": "memory for time: gradients are the same bits",
    "learner.kernels": "speed: the same numbers to rounding",
    "learner.max_tokens_per_rank": "memory: the same sum, in another order",
    "learner.feature_cache_bytes": "memory: cached features are the computed ones",
    "learner.device_feature_cache_bytes": "memory, as above",
    "learner.decode_ahead_bytes": "memory",
    "learner.decode_workers": "threads",
    "learner.allow_float32_on_cuda": "a permission: shared.dtype is compared",
}
"""Key, or start of keys → why it may."""
LEFT_OUT = {"shared.sampling.top_k": 0}
"""What a resolved config does not say where it is so (`common.messages.Sampling`)."""


def refuse_changes(saved: Path, run: config.Run) -> None:
    """Compare a checkpoint's config.json with the run that is about to go on from it.

    Raises:
        ConfigError: settings differ that may not; names each with what was found and wanted.
    """
    wanted = LEFT_OUT | dict(_flat(json.loads(saved.read_text(encoding="utf-8"))))
    found = LEFT_OUT | dict(_flat(json.loads(config.dump(run))))
    defaults = dict(_flat_defaults(run))
    changed = [
        f"  {key}: found {value!r}, wanted {was!r}"
        for key, value in found.items()
        # A key that the checkpoint's version did not have was at its default then.
        if (was := wanted.get(key, defaults.get(key))) != value and not may_change(key)
    ]
    changed += [  # of a table that this run lacks
        f"  {key}: found None, wanted {was!r}"
        for key, was in wanted.items()
        if any(found.get(table, ...) is None for table in _tables(key)) and not may_change(key)
    ]
    if changed:
        raise ConfigError(
            f"learner.run_dir: found {len(changed)} setting(s) other than those that "
            f"{saved.parent.name} was trained with:\n" + "\n".join(changed) + "\n"
            "set them back to resume, or start a new run in another learner.run_dir"
        )


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value."""
    return any(key == known or key.startswith(f"{known}.") for known in MAY_CHANGE)


def _flat_defaults(run: config.Run) -> Iterator[tuple[str, Any]]:
    """What each key of this run would be if it were not said; the tables of a list too."""
    yield from _flat(json.loads(config.dump(_bare(run))))
    phase = config.Phase().model_dump(mode="json")
    for number in range(len(run.learner.phases)):
        yield from _flat(phase, f"learner.phases.{number}.")


def _bare(run: config.Run) -> config.Run:
    """The run with nothing said but what has no default."""
    shared, learner = run.shared, run.learner
    return config.Run(
        shared=config.Shared(run_id=shared.run_id, model=shared.model),
        learner=config.Learner(rows=learner.rows, run_dir=learner.run_dir, steps=learner.steps),
    )


def _tables(key: str) -> Iterator[str]:
    """`a.b.c` → `a.b`, `a`."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys as they stand in a run file; a list of tables also says how many they are."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{prefix}{name}", f"{len(value)} table(s)"
            yield from _flat(
                {str(number): table for number, table in enumerate(value)}, f"{prefix}{name}."
            )
        else:
            yield f"{prefix}{name}", value
