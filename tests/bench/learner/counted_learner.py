"""The learner, its model watched: `python -m tests.bench.learner.counted_learner FILE ARGUMENTS`.

ARGUMENTS are those of `tempsamp learner`; FILE gets counts a step and seconds of each save.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from services.learner import train
from tempsamp import main
from tests.bench.learner.counting import Counts


def watch(file: Path) -> None:
    """Count and time from now on; everything is written anew after each save."""
    counts, saves_s = Counts(), []
    start_policy, save = train.start_policy, train.Learner.save

    def watched(*args: Any, **kwargs: Any) -> Any:
        policy = start_policy(*args, **kwargs)
        counts.watch(policy.model.model, trains=True)
        return policy

    def timed(learner: train.Learner, version: int) -> None:
        new = version != learner.saved_version
        start = time.perf_counter()
        save(learner, version)
        if new:
            saves_s.append(time.perf_counter() - start)
        file.write_text(json.dumps({"save_s": saves_s, **counts.per_step(max(version, 1))}))

    train.start_policy = watched
    train.Learner.save = timed  # type: ignore[method-assign]


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.argv = ["tempsamp", "learner", *sys.argv[2:]]
    main()
