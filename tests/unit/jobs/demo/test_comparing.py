"""Comparison of methods over seeds: statistics by hand, ties said plainly, runs made only once."""

import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.errors import ConfigError
from jobs.demo import compare_methods as command
from jobs.demo.compare_methods import Settings, all_settings, finished_summary, run_missing
from jobs.demo.method_statistics import (
    FIGURES,
    Comparison,
    compare,
    markdown,
    paired_difference,
    tables,
)
from jobs.local.processes import ChildError


def a_summary(method: str, seed: int, **figures: float) -> dict[str, Any]:
    """A run whose every figure ends at .5 unless said otherwise."""
    ends = {f"{key}_end": 0.5 for key in FIGURES}
    changed = {f"{key.replace('_at_0_', '_at_0.')}_end": value for key, value in figures.items()}
    assert changed.keys() <= ends.keys()
    return {
        "run": f"{method}-{seed}",
        "method": method,
        "seed": seed,
        "steps": 200,
        "eval_split": "test",
        "eval_queries": 384,
        "num_samples": 8,
        "best_constant_miou": 0.36,
        "random_span_miou": 0.23,
        "failed_queries_start": 0,
        "failed_queries_end": 0,
        "policy_version_end": 200,
        "train_wall_s": 150.0,
        "machine": "2 cores, a processor",
        **{f"{key}_start": 0.4 for key in FIGURES},
        **ends,
        **changed,
    }


def test_interval_is_that_of_a_paired_t_test() -> None:
    """Deltas .1, .2, .3: mean .2, std .1, t(2) = 4.3027, so half the interval is .24841."""
    found = paired_difference([0.5, 0.6, 0.7], against=[0.4, 0.4, 0.4])
    assert found.mean == pytest.approx(0.2)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(-0.048414, abs=1e-5)
    assert found.verdict == "tie"


def test_pairing_finds_a_difference_that_means_alone_would_hide() -> None:
    first, second = [0.310, 0.511, 0.712], [0.30, 0.50, 0.70]
    assert paired_difference(first, against=second).verdict == "higher"
    assert paired_difference(second, against=first).verdict == "lower"
    assert paired_difference(first, against=[0.70, 0.30, 0.50]).verdict == "tie"


def test_equal_values_tie_and_one_seed_decides_nothing() -> None:
    assert paired_difference([0.5, 0.6], against=[0.5, 0.6]).verdict == "tie"
    single = paired_difference([0.9], against=[0.1])
    assert (single.verdict, single.low) == ("one seed", None)


@pytest.fixture
def comparison() -> Comparison:
    """Tempsamp is higher than grpo in mIoU in each seed, ties in entropy; sft is highest."""
    runs = []
    for seed, noise in enumerate((0.0, 0.01, 0.02)):
        runs += [
            a_summary("grpo", seed, miou=0.50 + noise, entropy=0.3),
            a_summary("tempsamp", seed, miou=0.58 + 1.1 * noise, entropy=0.3 + noise - 0.01),
            a_summary("sft", seed, miou=0.60 + 1.2 * noise),
        ]
    return compare(runs)


def test_one_seed_gives_figures_but_no_findings() -> None:
    single = compare([a_summary("grpo", 0), a_summary("sft", 0, miou=0.9)])
    assert single.findings == ("sft against grpo: one seed decides nothing.",)
    assert "1 seed, 200 steps" in markdown(single)
    assert "+0.400 (one seed)" in markdown(single)


def test_means_and_deviations_are_over_seeds(comparison: Comparison) -> None:
    grpo = comparison.methods["grpo"]["miou"]
    assert grpo.mean == pytest.approx(0.51)
    assert grpo.std == pytest.approx(0.01)
    assert grpo.values == pytest.approx((0.50, 0.51, 0.52))
    assert comparison.seeds == (0, 1, 2)


def test_findings_say_ties_and_a_control_that_wins(comparison: Comparison) -> None:
    text = "\n".join(comparison.findings)
    assert "tempsamp against grpo: higher in greedy mIoU; tie in sampled mIoU" in text
    assert "tempsamp against sft: lower in greedy mIoU" in text
    pairs = {(pair.method, pair.against): pair.differences for pair in comparison.pairs}
    assert pairs["tempsamp", "grpo"]["entropy"].verdict == "tie"
    assert ("mixed", "grpo") not in pairs


def test_markdown_holds_every_figure_every_run_and_marks_ties(comparison: Comparison) -> None:
    text = markdown(Comparison.model_validate_json(comparison.model_dump_json()))
    for name in FIGURES.values():
        assert f"| {name} |" in text
    assert "| greedy mIoU | 0.400 | 0.510 ± 0.010 |" in text
    assert "| tie +0.000 [±0.000] |" in text
    assert text.count("\n| grpo | ") == 3
    widths = {len(line.split("|")) for line in text.splitlines() if line.startswith("| entropy")}
    assert widths == {2 + 2 + 3, 2 + 1 + 3}


def test_tables_print_in_a_terminal(comparison: Comparison) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    for table in tables(comparison):
        console.print(table)
    printed = console.export_text()
    assert "3 seeds, 200 steps, test split, 384 queries, G = 8" in printed
    assert "0.510 ± 0.010" in printed
    assert "tempsamp - grpo" in printed


def test_requests_without_an_answer_are_counted(comparison: Comparison) -> None:
    assert "got no answer" not in markdown(comparison)
    failed = compare([a_summary("grpo", 0) | {"failed_queries_end": 2}])
    assert "2 requests got no answer" in markdown(failed)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"steps": 100, "policy_version_end": 100}, "steps 100, 200"),
        ({"eval_split": "validation"}, "eval_split test, validation"),
        ({"policy_version_end": 0}, "evaluation of weight version 0, wanted 200"),
        ({"seed": 7}, r"no run for \[\('grpo', 7\), \('sft', 0\)\]"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        compare([a_summary("grpo", 0), a_summary("sft", 0) | change])


def test_nothing_to_compare_is_said() -> None:
    with pytest.raises(ValueError, match="no finished run"):
        compare([])


def test_runs_follow_the_rule_seed_by_seed() -> None:
    runs = all_settings(["grpo", "sft"], seeds=[0, 1], steps=None)
    assert [(run.method, run.seed) for run in runs] == [
        ("grpo", 0),
        ("sft", 0),
        ("grpo", 1),
        ("sft", 1),
    ]
    assert {run.split for run in runs} == {"test"}
    assert "--no-report" in runs[0].command
    assert all_settings(["grpo"], seeds=[0], steps=3)[0].run == "compare-grpo-3-0"


@pytest.mark.parametrize(
    ("methods", "seeds"), [(["ppo"], [0]), (["grpo"] * 2, [0]), (["sft"], [1, 1])]
)
def test_unknown_or_repeated_names_are_refused(methods: list[str], seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match="wanted"):
        all_settings(methods, seeds=seeds, steps=1)


SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True)
if sys.argv[2] == "13": sys.exit("the learner died")
(folder / "summary.json").write_text(json.dumps({"seed": int(sys.argv[2])}))
"""


@dataclass(frozen=True)
class Quick(Settings):
    """A run that takes milliseconds; seed 13 fails."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", SCRIPT, str(self.run_dir), str(self.seed)]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Quick]:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "OUT", tmp_path / "runs" / "compare")
    monkeypatch.setattr(command, "POLL_S", 0.05)
    return [Quick("grpo", 2, seed, "test", "weights", "recipe") for seed in range(3)]


def test_a_finished_run_is_not_repeated_and_an_unfinished_one_starts_afresh(
    quick: list[Quick],
) -> None:
    done, half, new = quick
    said: list[str] = []
    run_missing([done], num_jobs=1, on_change=said.append)
    half.run_dir.mkdir(parents=True)
    (half.run_dir / "summary.json").write_text("{}")  # no settings beside it: not trusted
    run_missing([done, half, new], num_jobs=2, on_change=said.append)
    assert [finished_summary(run) for run in quick] == [{"seed": seed} for seed in range(3)]
    assert sum("compare-grpo-2-0 started" in line for line in said) == 1


def test_a_run_made_with_other_weights_or_config_does_not_count(quick: list[Quick]) -> None:
    run_missing(quick[:1], num_jobs=1, on_change=lambda _: None)
    kept = json.loads((quick[0].run_dir / "compare_settings.json").read_text())
    assert finished_summary(Quick(**kept)) == {"seed": 0}
    for key in ("start_sha256", "config_sha256"):
        assert finished_summary(Quick(**kept | {key: "changed"})) is None


def test_a_failed_run_stops_the_comparison_with_its_reason_and_keeps_the_others(
    quick: list[Quick],
) -> None:
    failing = Quick("grpo", 2, 13, "test", "weights", "recipe")
    with pytest.raises(ChildError, match="the learner died"):
        run_missing([quick[0], failing, quick[1]], num_jobs=1, on_change=lambda _: None)
    assert finished_summary(quick[0]) == {"seed": 0}
    assert finished_summary(failing) is None
