"""Comparison of methods: statistics by hand, gaps said plainly, runs made only once."""

import json
import math
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from common import config
from common.errors import ConfigError
from jobs.demo.comparing import command, records, rules, runs
from jobs.demo.comparing.page import page
from jobs.demo.comparing.paired import difference, paired_difference, spread
from jobs.demo.comparing.plot import plot
from jobs.demo.comparing.records import FIGURES, MECHANISM, Early, RunRecord, record_of
from jobs.demo.comparing.runs import Settings, all_settings, finished, run_missing
from jobs.demo.comparing.verdicts import verdicts
from jobs.demo.course import METHODS
from jobs.demo.run import CONFIG, NO_REDIS, ROOT, Demo
from jobs.local.processes import ChildError
from jobs.toy.regimes import REGIMES


def a_record(method: str, seed: int, regime: str = "few", **last: float | None) -> RunRecord:
    """A run whose every figure is .5 unless said otherwise."""
    return RunRecord(
        regime=regime,
        method=method,
        seed=seed,
        steps=200,
        split="test",
        queries=384,
        num_samples=8,
        settings_sha256="s",
        start_sha256="w",
        start=dict.fromkeys(FIGURES, 0.4),
        last={**dict.fromkeys(FIGURES, 0.5), **last},
        early=Early(step=150, figures=dict.fromkeys(FIGURES, 0.6)),
        mechanism=dict.fromkeys(MECHANISM, 0.25),
        best_constant_miou=0.36,
        random_span_miou=0.23,
        failed_queries=0,
        train_minutes=2.5,
        machine="2 cores, a processor",
        load=1.5,
    )


def a_summary(**changed: Any) -> dict[str, Any]:
    """Of a run that ended well."""
    return {
        "run": "r",
        "seed": 3,
        "steps": 200,
        "policy_version_end": 200,
        "eval_split": "test",
        "eval_queries": 384,
        "num_samples": 8,
        "best_constant_miou": 0.36,
        "random_span_miou": 0.23,
        "failed_queries_start": 1,
        "failed_queries_end": 2,
        "train_wall_s": 150.0,
        "machine": "2 cores, a processor",
        "best_step": 150,
        **{f"{key}_{when}": 0.5 for key in FIGURES for when in ("start", "end", "best")},
        **dict.fromkeys(MECHANISM, 0.1),
        **changed,
    }


# --- statistics -----------------------------------------------------------------------------------


def test_interval_is_that_of_a_paired_t_test() -> None:
    """Deltas .1, .2, .3: mean .2, std .1, t(2) = 4.3027, so half the interval is .24841."""
    found = paired_difference([0.5, 0.6, 0.7], [0.4, 0.4, 0.4])
    assert found.mean == pytest.approx(0.2)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(-0.048414, abs=1e-5)
    assert found.verdict == "tie"


def test_pairing_finds_a_difference_that_means_alone_would_hide() -> None:
    first, second = [0.310, 0.511, 0.712], [0.30, 0.50, 0.70]
    assert paired_difference(first, second).verdict == "higher"
    assert paired_difference(second, first).verdict == "lower"
    assert paired_difference(first, [0.70, 0.30, 0.50]).verdict == "tie"


def test_equal_values_tie_and_one_seed_decides_nothing() -> None:
    assert paired_difference([0.5, 0.6], [0.5, 0.6]).verdict == "tie"
    single = paired_difference([0.9], [0.1])
    assert (single.verdict, single.low) == ("one seed", None)


def test_only_seeds_of_both_methods_with_the_figure_are_paired() -> None:
    found = [
        a_record("grpo", 0),
        a_record("grpo", 1),
        a_record("grpo", 2, miou=None),
        a_record("sft", 1, miou=0.7),
        a_record("sft", 2, miou=0.9),
    ]
    seen = difference(found, "miou", method="sft", against="grpo")
    assert seen is not None
    assert (seen.count, seen.mean) == (1, pytest.approx(0.2))
    early = difference(found, "miou", method="sft", against="grpo", when="early")
    assert early is not None
    assert (early.count, early.mean) == (2, 0.0)
    assert difference(found, "miou", method="mixed", against="grpo") is None


def test_means_and_deviations_are_over_what_was_measured() -> None:
    found = spread([0.5, None, 0.7])
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(0.6), 2)
    assert found.std == pytest.approx(math.sqrt(0.02))
    assert spread([None]) is None


# --- records --------------------------------------------------------------------------------------


def test_a_summary_becomes_a_record_that_is_read_back(tmp_path: Path) -> None:
    made = record_of(
        a_summary(miou_best=0.123456789),
        regime="few",
        method="tempsamp-set",
        settings_sha256="s",
        start_sha256="w",
        load=None,
    )
    assert made.early is not None
    assert (made.early.step, made.early.figures["miou"]) == (150, 0.123457)
    assert made.failed_queries == 3
    path = records.write(made, tmp_path)
    assert path == tmp_path / "few/tempsamp-set-3.json"
    assert list(records.read_all(tmp_path)) == [made]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_run_evaluated_with_other_weights_is_no_record() -> None:
    settings = {"settings_sha256": "s", "start_sha256": "w", "load": None}
    with pytest.raises(ValueError, match="evaluation of weight version 0, wanted 200"):
        record_of(a_summary(policy_version_end=0), regime="few", method="sft", **settings)  # type: ignore[arg-type]
    never = record_of(a_summary(best_step=None), regime="few", method="sft", **settings)  # type: ignore[arg-type]
    assert never.early is None


def test_a_misplaced_or_broken_record_is_named(tmp_path: Path) -> None:
    path = records.write(a_record("sft", 0), tmp_path)
    path.rename(path.with_name("sft-1.json"))
    with pytest.raises(ValueError, match=r"sft-1\.json: found the record of few/sft-0\.json"):
        list(records.read_all(tmp_path))
    path.with_name("sft-1.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sft-1\.json: found no record of a run"):
        list(records.read_all(tmp_path))


# --- page -----------------------------------------------------------------------------------------


def test_the_page_in_docs_is_that_of_the_records_in_docs(tmp_path: Path) -> None:
    command.write_page(command.RECORDS, out=tmp_path)
    for name in (command.PAGE, command.PLOT):
        found, wanted = (root / name for root in (ROOT, tmp_path))
        assert found.read_text() == wanted.read_text(), "`make compare` writes it anew"


def test_what_is_not_there_is_never_filled_in() -> None:
    empty = page([])
    assert "not run yet" in empty
    assert "higher" not in empty.partition("## What is not resolved")[2].partition("## The rule")[0]
    assert empty.count("Not run yet: `make compare REGIME=") == len(rules.METHODS)
    part = page([a_record("grpo", 0), a_record("grpo", 1, miou=0.7), a_record("sft", 1, miou=0.9)])
    assert "| few | 0.400 | 0.600 ± 0.141 / 0.600 ± 0.000 (2 of 5 runs) | not run yet |" in part
    assert "0.900 (one run) / 0.600 (one run) (1 of 5 runs)" in part
    assert "| sft - grpo | no figure | not run yet | +0.200 (one seed) |" in part
    assert "**few**: runs that are missing: grpo 3 of 5, mixed 5 of 5" in part
    unmeasured = a_record("mixed", 0).model_copy(update={"early": None})
    assert "0.500 (one run) / not measured (1 of 5 runs)" in page([unmeasured])


def answers(found: Sequence[RunRecord], regime: str) -> list[str]:
    by_regime = {name: [one for one in found if one.regime == name] for name in rules.METHODS}
    return [one.answer for one in verdicts(by_regime) if one.regime == regime]


def runs_of(regime: str, **mious: float) -> list[RunRecord]:
    """Five seeds of each method, a little apart."""
    return [
        a_record(method.replace("_", "-"), seed, regime, miou=miou + 0.001 * seed)
        for method, miou in mious.items()
        for seed in rules.DEFAULT_SEEDS
    ]


def test_a_rule_s_question_is_open_until_every_run_is_there() -> None:
    found = runs_of("few", mixed=0.5, tempsamp=0.5, sft=0.4)
    without_one_sft = found[:-1]
    assert answers(without_one_sft, "few")[0] == "open: 1 of 15 runs are missing"
    assert answers(without_one_sft, "few")[1] == answers(found, "few")[1]
    transfers, shaping = answers(found, "few")
    assert transfers.startswith("**yes**: tempsamp - sft higher +0.100 ± 0.000 (5); mixed - sft")
    assert shaping == "**no**: tempsamp - mixed tie +0.000 ± 0.000 (5)"


def test_noise_is_withstood_by_one_method_that_beats_both_others() -> None:
    others = {"tempsamp": 0.5, "anchor": 0.4, "tempsamp_set": 0.4}
    yes, dense = answers(runs_of("noisy", mixed=0.45, sft=0.5, downscale=0.6, **others), "noisy")
    assert yes.startswith("**yes**: downscale - mixed higher +0.150")
    assert "tempsamp - mixed" not in yes
    assert dense.startswith("**no**: tempsamp-set - tempsamp lower -0.100")
    no, _ = answers(runs_of("noisy", mixed=0.45, sft=0.5, downscale=0.5, **others), "noisy")
    assert no.startswith("**no**: tempsamp - mixed higher +0.050")


def test_the_mechanism_is_shown_if_injection_alone_finds_hits() -> None:
    def found(**at_end: float) -> list[RunRecord]:
        shares = {"train_without_hit_start": 0.9}
        return [
            one.model_copy(
                update={"mechanism": {**shares, "train_without_hit_end": at_end[one.method]}}
            )
            for one in runs_of("long", grpo=0.1, mixed=0.1, tempsamp=0.1)
        ]

    _, mechanism = answers(found(grpo=0.9, mixed=0.4, tempsamp=0.9), "long")
    assert mechanism == (
        "**yes**: grpo 0.900 to 0.900; tempsamp 0.900 to 0.900; mixed 0.900 to 0.400"
    )
    assert answers(found(grpo=0.3, mixed=0.4, tempsamp=0.9), "long")[1].startswith("**no**")
    assert answers(found(grpo=0.9, mixed=0.9, tempsamp=0.9), "long")[1].startswith("**no**")


def test_differences_of_full_hold_with_the_same_sign() -> None:
    full = runs_of("full", grpo=0.4, mixed=0.6, tempsamp=0.5, sft=0.6)
    several = runs_of("several", grpo=0.3, mixed=0.4, tempsamp=0.5, sft=0.4)
    assert answers(full, "several") == ["open: 20 of 20 runs are missing"]
    (held,) = answers([*full, *several], "several")
    assert held.startswith("**3 of 5 do**: tempsamp - grpo higher +0.200 ± 0.000 (5); tempsamp - ")


def test_ties_different_starts_and_lost_requests_are_said() -> None:
    found = [a_record(method, seed) for method in ("grpo", "mixed") for seed in range(5)]
    found[0] = found[0].model_copy(update={"start_sha256": "other", "failed_queries": 2})
    text = page(found)
    assert "**few**: ties in greedy mIoU: mixed and grpo." in text
    assert "tie +0.000 ± 0.000 (5)" in text
    assert "began with 2 different starts of one recipe" in text
    assert "2 requests got no answer" in text


def test_every_table_of_the_page_is_whole() -> None:
    def tables(text: str) -> Iterator[list[str]]:
        for block in text.split("\n\n"):
            if block.startswith("|"):
                yield block.splitlines()

    found = [a_record(name, seed, "noisy") for name in rules.METHODS["noisy"] for seed in (0, 1)]
    seen = list(tables(page(found)))
    assert len(seen) >= 6
    for table in seen:
        assert len({line.count(" | ") for line in table}) == 1, table[0]


def test_runs_that_cannot_be_compared_are_refused() -> None:
    other = a_record("sft", 0).model_copy(update={"steps": 100})
    with pytest.raises(ValueError, match="few: found runs with steps 100, 200"):
        page([a_record("grpo", 0), other])


def test_the_plot_has_a_column_a_method_and_a_dot_a_run() -> None:
    found = [a_record("grpo", 0, miou=0.4), a_record("grpo", 1), a_record("sft", 0)]
    svg = ElementTree.fromstring(plot({"few": found}, {"few": ("grpo", "sft"), "long": ("grpo",)}))
    names = [element.tag.partition("}")[2] for element in svg.iter()]
    texts = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert names.count("circle") == 2
    assert names.count("rect") == 3, "start, grpo, sft"
    assert {"few", "long", "grpo", "sft", "start"} <= set(texts)
    assert texts.count("none") == 2, "the start and the method of a regime without runs"


# --- rules and runs -------------------------------------------------------------------------------


def test_every_regime_has_rule_run_file_and_methods_that_exist() -> None:
    assert rules.METHODS.keys() == REGIMES.keys() - {"hybrid"}
    for name, methods in rules.METHODS.items():
        assert len(rules.rule(name)) > 100
        assert set(methods) <= rules.METHOD_SETTINGS.keys()
    assert {method for method, _ in rules.METHOD_SETTINGS.values()} <= METHODS.keys()
    named = {name for claim in rules.CLAIMS for name in (claim.method, claim.against)}
    assert named == {name for methods in rules.METHODS.values() for name in methods}


DIFFERENT = {
    "full": set(),
    "few": {"learner.validation.every", "learner.validation.limit"},
    "noisy": {"learner.validation.every", "learner.validation.limit"},
    "long": {"learner.validation.every", "learner.validation.limit", "shared.model"},
    "several": {
        *("learner.validation.every", "learner.validation.limit", "shared.model"),
        "shared.sampling.max_tokens",
    },
    "hybrid": {
        *("learner.validation.every", "learner.validation.limit", "learner.validation.mode"),
        *("learner.phases", "shared.model", "shared.sampling.max_tokens"),
    },
}
PLACES = {"shared.run_id", "learner.rows", "learner.run_dir"}


@pytest.mark.parametrize("name", REGIMES)
def test_a_regime_s_run_file_is_the_demo_s_but_for_what_its_rule_says(name: str) -> None:
    found, wanted = (
        dict(_flat(tomllib.loads(file.read_text()))) for file in (runs.run_file_of(name), CONFIG)
    )
    changed = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
    assert changed - PLACES == DIFFERENT[name]
    demo = Demo("sft", None, 0, "never-started", False, "test", None, regime=REGIMES[name])
    run = config.load(demo.config_file, overrides=demo.overrides(NO_REDIS), environ=demo.environ)
    assert run.learner.rows == demo.rows("train")
    named = config.load(demo.config_file).learner.rows
    assert (ROOT / named).resolve() == demo.rows("train").resolve(), "the file says it too"
    assert (ROOT / config.load(demo.config_file).shared.model).resolve() == demo.model.resolve()


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_runs_follow_the_rule_seed_by_seed() -> None:
    found = all_settings("noisy", ["grpo", "tempsamp-set"], seeds=[0, 1])
    assert [(run.method, run.seed) for run in found] == [
        ("grpo", 0),
        ("tempsamp-set", 0),
        ("grpo", 1),
        ("tempsamp-set", 1),
    ]
    words = found[1].command
    assert words[words.index("--method") + 1] == "tempsamp"
    assert 'shared.scoring.reward="iou+wasserstein"' in words
    assert words[words.index("--regime") + 1] == "noisy"
    assert {"--no-report", "--evaluate-best"} <= set(words)
    assert found[0].run == "compare-noisy-grpo-200-0"


def test_what_has_no_rule_is_not_compared() -> None:
    with pytest.raises(ConfigError, match=r"REGIME: found 'hybrid', wanted one of full, few, "):
        all_settings("hybrid", ["grpo"], seeds=[0])


def test_a_digest_is_of_what_decides_the_result() -> None:
    plain = Settings("few", "grpo", 200, 0)
    assert plain.sha256 == Settings("few", "grpo", 200, 1).sha256
    others = [
        Settings("full", "grpo", 200, 0),
        Settings("few", "sft", 200, 0),
        Settings("few", "grpo", 100, 0),
        Settings("few", "grpo", 200, 0, eval_queries=6),
    ]
    assert len({plain.sha256, *(other.sha256 for other in others)}) == 5


@pytest.mark.parametrize(
    ("regime", "methods", "seeds"),
    [
        ("fews", ["grpo"], [0]),
        ("few", ["ppo"], [0]),
        ("few", ["anchor"], [0]),
        ("few", ["grpo"] * 2, [0]),
        ("few", ["sft"], [1, 1]),
    ],
)
def test_unknown_or_repeated_names_are_refused(
    regime: str, methods: list[str], seeds: list[int]
) -> None:
    with pytest.raises(ConfigError, match="wanted"):
        all_settings(regime, methods, seeds=seeds)


@pytest.mark.parametrize("seeds", ["a", "-1", "1,", "1;2", "0.5"])
def test_seeds_are_numbers(seeds: str) -> None:
    with pytest.raises(ConfigError, match=f"SEEDS: found '{seeds}', wanted numbers like"):
        command.main(regime="few", seeds=seeds)


@pytest.mark.parametrize("named", [{"methods": "grpo"}, {"seeds": "0"}])
def test_what_is_to_be_run_needs_a_regime(named: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="REGIME: found none with METHODS or SEEDS"):
        command.main(**named)


def test_a_trial_s_figures_stay_out_of_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--records: found none with --steps"):
        command.main(regime="few", steps=2)
    with pytest.raises(ConfigError, match="REGIME: found 'fews'"):
        command.main(regime="fews", folder=tmp_path)
    with pytest.raises(ConfigError, match="SEEDS: found '0;1'"):
        command.main(regime="few", seeds="0;1", folder=tmp_path)


SCRIPT = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True)
if sys.argv[2] == "13": sys.exit("the learner died")
(folder / "summary.json").write_text(sys.argv[3])
"""


QUIET: dict[str, Any] = {"on_change": lambda _: None, "on_record": lambda _: None}


@dataclass(frozen=True)
class Quick(Settings):
    """A run that takes milliseconds; seed 13 fails."""

    @property
    def command(self) -> list[str]:
        summary = json.dumps(a_summary(seed=self.seed))
        return [sys.executable, "-c", SCRIPT, str(self.run_dir), str(self.seed), summary]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Quick]:
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(runs, "POLL_S", 0.05)
    monkeypatch.setattr(runs, "decode_clips", lambda *_, **__: None)
    return [Quick("few", "grpo", 200, seed) for seed in range(3)]


def test_a_run_with_a_record_is_not_repeated_and_an_unfinished_one_starts_afresh(
    quick: list[Quick], tmp_path: Path
) -> None:
    done, half, new = quick
    folder = tmp_path / "records"
    said: list[str] = []
    made: list[RunRecord] = []
    options: dict[str, Any] = {"on_change": said.append, "on_record": made.append}
    run_missing([done], folder=folder, num_jobs=1, **options)
    assert made[0].load is not None
    half.run_dir.mkdir(parents=True)
    (half.run_dir / "summary.json").write_text("{}")  # without a record it is not trusted
    run_missing([done, half, new], folder=folder, num_jobs=2, **options)
    assert sorted(record.seed for record in made) == [0, 1, 2]
    assert all(finished(run, folder) for run in quick)
    assert sum("compare-few-grpo-200-0 started" in line for line in said) == 1


def test_a_record_of_other_settings_does_not_count(quick: list[Quick], tmp_path: Path) -> None:
    run_missing(quick[:1], folder=tmp_path, num_jobs=1, **QUIET)
    (made,) = records.read_all(tmp_path)
    assert finished(quick[0], tmp_path) == made
    records.write(made.model_copy(update={"settings_sha256": "changed"}), tmp_path)
    assert finished(quick[0], tmp_path) is None


def test_a_failed_run_stops_the_comparison_with_its_reason_and_keeps_the_others(
    quick: list[Quick], tmp_path: Path
) -> None:
    failing = Quick("few", "grpo", 200, 13)
    with pytest.raises(ChildError, match="the learner died"):
        run_missing([quick[0], failing, quick[1]], folder=tmp_path, num_jobs=1, **QUIET)
    assert finished(quick[0], tmp_path) is not None
    assert finished(failing, tmp_path) is None
