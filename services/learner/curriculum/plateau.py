"""Whether validation stopped to improve: `<run_dir>/validation.jsonl` → yes or no.

The file is part of what a resumed run goes back to (`metrics.keep_until`), so there is no state.
"""

from pathlib import Path

from common.config import EarlyStop
from common.queue.lines import read_figures

METRIC = "val/miou"


class Plateau:
    """Of one run."""

    def __init__(self, path: Path, settings: EarlyStop) -> None:
        """`path`: of validation.jsonl; it need not be there yet."""
        self._path, self._settings = path, settings

    def reached(self, *, since: int, before: int, patience: int) -> bool:
        """Whether the last `patience` validations passed the best one before them nowhere.

        Args:
            since: oldest version that counts.
            before: versions from here on do not count.
            patience: validations to wait for an improvement by more than `min_delta`.
        """
        found = [iou for version, iou in self._figures() if since <= version < before]
        if len(found) <= patience:
            return False
        return max(found[-patience:]) <= max(found[:-patience]) + self._settings.min_delta

    def stops(self, *, since: int, before: int) -> bool:
        """Whether `learner.early_stop` ends the run."""
        patience = self._settings.patience
        if patience is None:
            return False
        return self.reached(since=since, before=before, patience=patience)

    def _figures(self) -> list[tuple[int, float]]:
        lines = read_figures(self._path, by="policy_version")
        return [(line["policy_version"], line[METRIC]) for line in lines if METRIC in line]
