"""The learner, its model watched: `python -m tests.bench.learner.counted_learner FILE ARGUMENTS`.

ARGUMENTS are those of `tempsamp learner`; FILE gets counts a step.
"""

import json
import sys
from pathlib import Path
from typing import Any

from services.learner import train
from services.learner.state.saving import Saving
from tempsamp import main
from tests.bench.learner.counting import Counts


def watch(file: Path) -> None:
    """Count from now on; everything is written anew at each save."""
    counts = Counts()
    start_policy, save = train.start_policy, Saving.save

    def watched(*args: Any, **kwargs: Any) -> Any:
        policy = start_policy(*args, **kwargs)
        counts.watch(policy.model.model, trains=True)
        return policy

    def counted(saving: Saving, version: int) -> None:
        save(saving, version)
        file.write_text(json.dumps(counts.per_step(max(version, 1))))

    train.start_policy = watched
    Saving.save = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.argv = ["tempsamp", "learner", *sys.argv[2:]]
    main()
