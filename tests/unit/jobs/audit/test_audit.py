"""An audit finds what was planted, and nothing else."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tempsamp
from common.queue.ledger import (
    FILE,
    CheckpointLine,
    FateLine,
    LeftOutLine,
    Line,
    Prompt,
    RejectedLine,
    RunLine,
    StepLine,
    TrainedGroup,
)

ROWS = "".join(f'{{"row": {number}}}\n' for number in range(1, 7)) + "\n"
SHA256 = hashlib.sha256(ROWS.encode()).hexdigest()


def group(row: int, epoch: int = 0, tag: str = "abc") -> TrainedGroup:
    return TrainedGroup(
        prompt_id=f"{tag}-{epoch}-{row}",
        row_id=str(row),
        epoch=epoch,
        versions=(0, 1),
        replica="a",
        rewards=(0.5, None),
    )


def step(number: int, *groups: TrainedGroup, applied: bool = True) -> StepLine:
    return StepLine(step=number, learner_epoch=1, applied=applied, groups=groups)


def fate(row: int, kind: str = "dead", epoch: int = 0) -> FateLine:
    prompt = Prompt(prompt_id=f"abc-{epoch}-{row}", row_id=str(row), epoch=epoch)
    return FateLine(**prompt.model_dump(), step=1, fate=kind, reason="because")


def sound() -> list[Line]:
    """Two rows a step, six rows: one dead, one rejected, one asked again; epoch 1 has begun."""
    flying = Prompt(prompt_id="abc-1-5", row_id="5", epoch=1)
    return [
        RunLine(run_id="r", tag="abc", rows="rows.jsonl", rows_sha256=SHA256),
        RejectedLine(row_id="6", reason="no query"),
        step(1, group(1), group(2)),
        fate(3, "stale"),
        fate(4),
        step(2, group(3), group(5)),
        CheckpointLine(step=2, epoch=0, outstanding=()),
        step(3, group(2, epoch=1), group(1, epoch=1)),
        CheckpointLine(step=3, epoch=1, fed=3, outstanding=(flying,)),
        step(4, group(1, epoch=1), group(1, epoch=1)),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "rows.jsonl").write_text(ROWS)

    def audited(lines: list[Line], *arguments: str) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        text = "".join(line.model_dump_json() + "\n" for line in lines)
        (tmp_path / FILE).write_text(text + '{"kind": "st')
        rows = ("--rows", str(tmp_path / "rows.jsonl"))
        command = ["audit", str(tmp_path), *rows, *arguments]
        result = CliRunner().invoke(tempsamp.app, command)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            return 2, result.stdout, str(result.exception)
        return result.exit_code, result.stdout, result.stderr

    return audited


Run = Callable[..., tuple[int, str, str]]


def test_a_sound_run_is_proven_and_what_was_not_trained_is_listed(run: Run) -> None:
    code, output, errors = run(sound())
    assert (code, errors) == (0, ""), output
    table = [line.split() for line in output.splitlines()]
    assert ["0", "finished", "6", "4", "1", "1", "0", "0"] in table
    assert ["1", "at", "work", "6", "2", "0", "1", "1", "2"] in table
    assert "  row 4: dead: because" in output
    assert "  row 6: no query" in output
    assert "asked again: 1 stale" in output
    assert "proven up to the checkpoint of step 3; 1 later line(s) are not final" in output


def with_line(index: int, line: Line) -> list[Line]:
    lines = sound()
    lines[index] = line
    return lines


def without(index: int) -> list[Line]:
    return [line for number, line in enumerate(sound()) if number != index]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            with_line(5, step(2, group(3), group(1))),
            [
                "epoch 0 row 1: trained 2 times, in steps 1, 2",
                "epoch 0 row 5: neither trained on nor listed",
            ],
        ),
        (
            with_line(5, step(2, group(3), group(4))),
            [
                "epoch 0 row 4: trained in step 2, and given up",
                "epoch 0 row 5: neither trained on nor listed",
            ],
        ),
        (without(4), ["epoch 0 row 4: neither trained on nor listed"]),
        (with_line(3, fate(4)), ["epoch 0 row 4: given up 2 times: it was asked again"]),
        (
            without(1),
            ["epoch 0 row 6: neither trained on nor listed"],
        ),
        (
            without(5),
            [
                "step 2: missing, wanted all up to 3",
                "epoch 0 row 3: neither trained on nor listed",
                "epoch 0 row 5: neither trained on nor listed",
            ],
        ),
        (
            [*sound()[:3], sound()[2], *sound()[3:]],
            [
                "step 1: found 2 times, wanted once",
                "epoch 0 row 1: trained 2 times, in steps 1, 1",
                "epoch 0 row 2: trained 2 times, in steps 1, 1",
            ],
        ),
        (
            with_line(7, step(3, group(2, epoch=1), group(5, epoch=1))),
            [
                "epoch 1 row 5: trained in step 3, and still in flight",
                "epoch 1: found 2 rows trained on, listed or in flight, wanted 3: so many were fed",
            ],
        ),
        (
            with_line(7, step(3, group(2, epoch=1), group(9, epoch=1))),
            ["epoch 1 row 9: not in the row file"],
        ),
        (
            with_line(7, step(3, group(2, epoch=1), group(1, epoch=2))),
            [
                "epoch 2 row 1: trained before it was fed",
                "epoch 1: found 2 rows trained on, listed or in flight, wanted 3: so many were fed",
            ],
        ),
        (
            with_line(7, step(3, group(2, epoch=1), group(1, epoch=1, tag="xyz"))),
            ["step 3: prompt xyz-1-1 belongs to another run"],
        ),
        (
            with_line(0, RunLine(run_id="r", tag="abc", rows="rows", rows_sha256="0" * 64)),
            [
                f"rows: found sha256 {SHA256[:12]}, wanted 000000000000: these are not the rows "
                "that were trained on"
            ],
        ),
    ],
)
def test_each_violation_is_named(run: Run, lines: list[Line], said: list[str]) -> None:
    code, output, errors = run(lines)
    assert code == 1
    assert errors.splitlines() == [f"tempsamp: {line}" for line in said]
    assert "not proven" in output


def test_rows_of_a_step_that_changed_no_weights_are_listed(run: Run) -> None:
    code, output, _ = run(with_line(2, step(1, group(1), group(2), applied=False)))
    assert code == 0
    assert "epoch 0, in a step that changed no weights:\n  row 1\n  row 2\n" in output


def test_without_a_checkpoint_nothing_is_proven(run: Run) -> None:
    code, _, error = run(sound()[:3])
    assert code == 2
    assert "found no checkpoint in the ledger" in error


def test_a_broken_line_and_a_missing_file_are_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nowhere"):
        CliRunner().invoke(
            tempsamp.app, ["audit", str(tmp_path / "nowhere")], catch_exceptions=False
        )
    run(sound())
    (tmp_path / FILE).write_text('{"kind": "step"}\n')
    with pytest.raises(Exception, match=r"ledger.jsonl: line 1: found"):
        CliRunner().invoke(tempsamp.app, ["audit", str(tmp_path)], catch_exceptions=False)


def pooled() -> list[Line]:
    """Row 6 is in no epoch, row 5 sits the second one out; the third has begun."""
    return [
        RunLine(run_id="r", tag="abc", rows="rows.jsonl", rows_sha256=SHA256),
        LeftOutLine(epoch=None, rows={"6": "not in the subset"}),
        step(1, *(group(row) for row in range(1, 6))),
        LeftOutLine(epoch=1, rows={"5": "solved"}),
        step(2, *(group(row, epoch=1) for row in range(1, 5))),
        CheckpointLine(step=2, epoch=2, fed=0, outstanding=()),
    ]


def test_rows_that_the_pool_leaves_out_are_listed(run: Callable[..., tuple[int, str, str]]) -> None:
    code, shown, errors = run(pooled())
    assert (code, errors) == (0, "")
    assert "epoch 1, left out:" in shown
    assert "row 5: solved" in shown
    assert "row 6: not in the subset" in shown
    assert "proven up to the checkpoint of step 2" in shown


def test_a_row_that_was_left_out_and_asked_breaks_the_promise(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    lines = pooled()
    lines[3] = LeftOutLine(epoch=1, rows={"5": "solved", "1": "hopeless"})
    code, _, errors = run(lines)
    assert code == 1
    assert "epoch 1 row 1: asked, and left out (hopeless)" in errors


def test_a_row_is_left_out_of_its_epoch_alone(run: Callable[..., tuple[int, str, str]]) -> None:
    lines = pooled()
    del lines[3]
    code, _, errors = run(lines)
    assert code == 1
    assert "epoch 1 row 5: neither trained on nor listed" in errors
