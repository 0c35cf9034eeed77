"""Ledger + row file → what each epoch came to, and every row that breaks the promise (pure).

The promise: in each epoch that all rows were fed in, every row of the file was trained on exactly
once, or is listed with what became of it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from common.queue.ledger import (
    GIVEN_UP,
    CheckpointLine,
    FateLine,
    LeftOutLine,
    Line,
    RejectedLine,
    RunLine,
    StepLine,
)


@dataclass
class Epoch:
    """One pass over the rows."""

    number: int
    is_fed: bool
    """Whether all of its rows have been fed."""
    num_fed: int = 0
    """Of one whose rows have not all been fed: how many have."""
    missing: list[str] = field(default_factory=list)
    """Rows that were fed and are neither trained on nor listed, where their names are known."""
    steps: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Row → steps that trained on it."""
    given_up: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Row → why it was not trained on; two are one too many."""
    unapplied: list[str] = field(default_factory=list)
    """Rows of steps that changed no weights: a gradient not finite, or nothing to learn."""
    in_flight: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    """Row → why the pool did not ask it in this epoch."""

    @property
    def trained_twice(self) -> list[str]:
        """Rows that more than one step trained on."""
        return [row_id for row_id, steps in self.steps.items() if len(steps) > 1]

    @property
    def done(self) -> set[str]:
        """Rows of which it is known what became of them."""
        return self.steps.keys() | self.given_up.keys() | self.in_flight

    @property
    def num_lost(self) -> int:
        """Rows that were fed and are neither trained on nor listed."""
        return len(self.missing) if self.is_fed else max(0, self.num_fed - len(self.done))

    @property
    def is_finished(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.is_fed and not self.in_flight


@dataclass
class Audit:
    """What a ledger proves."""

    step: int
    """Of the last checkpoint: everything up to it is proven."""
    num_rows: int
    epochs: list[Epoch]
    rejected: dict[str, str]
    left_out: dict[str, str]
    """Row → why the pool asks it in no epoch."""
    asked_again: Counter[str]
    """Prompts that were asked again, by reason: stale or lost."""
    num_unproven: int
    """Lines after that checkpoint; a resumed run does their steps again."""
    violations: list[str]
    """Each names a row or a step."""

    @property
    def num_trained_twice(self) -> int:
        """Rows, over all epochs."""
        return sum(len(epoch.trained_twice) for epoch in self.epochs)

    @property
    def num_lost(self) -> int:
        """Rows, over all epochs."""
        return sum(epoch.num_lost for epoch in self.epochs)

    @property
    def num_given_up(self) -> int:
        """Rows, over all epochs."""
        return sum(len(epoch.given_up) for epoch in self.epochs)


def audit(lines: Sequence[Line], *, rows: Sequence[str], rows_sha256: str) -> Audit:
    """Check a ledger against the ids of the rows in their file.

    Raises:
        ValueError: there is no checkpoint in it yet, so nothing to prove.
    """
    ends = [n for n, line in enumerate(lines, 1) if isinstance(line, CheckpointLine)]
    if not ends:
        raise ValueError("found no checkpoint in the ledger, wanted one: nothing is final yet")
    proven, last = lines[: ends[-1]], lines[ends[-1] - 1]
    assert isinstance(last, CheckpointLine)
    found = Audit(
        step=last.step,
        num_rows=len(rows),
        epochs=[Epoch(number, is_fed=number < last.epoch) for number in range(last.epoch + 1)],
        rejected={line.row_id: line.reason for line in proven if isinstance(line, RejectedLine)},
        left_out={},
        asked_again=Counter(line.fate for line in _fates(proven) if line.fate not in GIVEN_UP),
        num_unproven=len(lines) - len(proven),
        violations=[],
    )
    found.epochs[-1].num_fed = last.fed
    found.violations += _of_the_run(proven, rows_sha256)
    found.violations += _of_steps(proven, last.step)
    _leave_out(found, proven)
    found.violations += _fill(found.epochs, proven, last)
    for epoch in found.epochs:
        if epoch.is_fed:
            listed = found.rejected.keys() | found.left_out.keys() | epoch.left_out.keys()
            done = epoch.done | listed
            epoch.missing = [row_id for row_id in rows if row_id not in done]
        found.violations += _of_rows(epoch, rows=rows)
        found.violations += _of_left_out(epoch, found.left_out)
    return found


def _fates(lines: Sequence[Line]) -> Iterator[FateLine]:
    return (line for line in lines if isinstance(line, FateLine))


def _of_the_run(lines: Sequence[Line], rows_sha256: str) -> Iterator[str]:
    first = lines[0]
    if not isinstance(first, RunLine):
        yield f"found a {first.kind} line first, wanted the run's"
        return
    if first.rows_sha256 != rows_sha256:
        yield (
            f"{first.rows}: found sha256 {rows_sha256[:12]}, wanted {first.rows_sha256[:12]}: "
            "these are not the rows that were trained on"
        )
    for line in (line for line in lines if isinstance(line, StepLine)):
        for group in line.groups:
            if not group.prompt_id.startswith(f"{first.tag}-"):
                yield f"step {line.step}: prompt {group.prompt_id} belongs to another run"


def _of_steps(lines: Sequence[Line], last: int) -> Iterator[str]:
    found = [line.step for line in lines if isinstance(line, StepLine)]
    for step, count in Counter(found).items():
        if count > 1:
            yield f"step {step}: found {count} times, wanted once"
    for step in sorted(set(range(1, last + 1)) - set(found)):
        yield f"step {step}: missing, wanted all up to {last}"
    for step in sorted(set(found) - set(range(1, last + 1))):
        yield f"step {step}: found before the checkpoint of step {last}"


def _leave_out(found: Audit, lines: Sequence[Line]) -> None:
    for line in (line for line in lines if isinstance(line, LeftOutLine)):
        if line.epoch is None:
            found.left_out |= line.rows
        elif line.epoch < len(found.epochs):
            found.epochs[line.epoch].left_out |= line.rows


def _of_left_out(epoch: Epoch, always: Mapping[str, str]) -> Iterator[str]:
    for row_id, why in {**always, **epoch.left_out}.items():
        if row_id in epoch.done:
            yield f"epoch {epoch.number} row {row_id}: asked, and left out ({why})"


def _fill(epochs: list[Epoch], lines: Sequence[Line], last: CheckpointLine) -> Iterator[str]:
    for line in lines:
        if isinstance(line, StepLine):
            for group in line.groups:
                if group.epoch > last.epoch:
                    yield f"epoch {group.epoch} row {group.row_id}: trained before it was fed"
                    continue
                epochs[group.epoch].steps[group.row_id].append(line.step)
                if not line.applied:
                    epochs[group.epoch].unapplied.append(group.row_id)
        elif isinstance(line, FateLine) and line.fate in GIVEN_UP and line.epoch <= last.epoch:
            epochs[line.epoch].given_up[line.row_id].append(f"{line.fate}: {line.reason}")
    for prompt in last.outstanding:
        if prompt.epoch <= last.epoch:
            epochs[prompt.epoch].in_flight.add(prompt.row_id)


def _of_rows(epoch: Epoch, *, rows: Sequence[str]) -> Iterator[str]:
    where = f"epoch {epoch.number} row"
    known = set(rows)
    for row_id in [*epoch.steps, *epoch.given_up, *epoch.in_flight]:
        if row_id not in known:
            yield f"{where} {row_id}: not in the row file"
    for row_id in epoch.trained_twice:
        steps = epoch.steps[row_id]
        yield f"{where} {row_id}: trained {len(steps)} times, in steps {_words(steps)}"
    for row_id, steps in epoch.steps.items():
        if row_id in epoch.given_up:
            yield f"{where} {row_id}: trained in step {_words(steps)}, and given up"
        if row_id in epoch.in_flight:
            yield f"{where} {row_id}: trained in step {_words(steps)}, and still in flight"
    for row_id, reasons in epoch.given_up.items():
        if len(reasons) > 1:
            yield f"{where} {row_id}: given up {len(reasons)} times: it was asked again"
        if row_id in epoch.in_flight:
            yield f"{where} {row_id}: given up, and still in flight"
    for row_id in epoch.missing:
        yield f"{where} {row_id}: neither trained on nor listed"
    if not epoch.is_fed and epoch.num_lost:
        yield (
            f"epoch {epoch.number}: found {len(epoch.done)} rows trained on, listed or in flight, "
            f"wanted {epoch.num_fed}: so many were fed"
        )


def _words(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in steps)
