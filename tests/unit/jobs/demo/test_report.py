"""The report of a run: self-contained, complete, and plain about what did not work."""

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.answers.spans import Span
from jobs.demo.baselines import blind_baselines
from jobs.demo.charts import learning_curves, phase_starts, smoothed
from jobs.demo.figures import Evaluation, evaluation_of
from jobs.demo.report import NUM_CLIPS, duration_text, main, verdict, write_report
from jobs.demo.summary import (
    ANSWERS_AFTER,
    ANSWERS_BEFORE,
    METRICS_FILE,
    PROBE_GAP,
    SUMMARY_FILE,
    VALIDATION_FILE,
    BestEvaluation,
    RunFacts,
    build_summary,
)
from jobs.evaluation.journal import Journal
from jobs.evaluation.scoring.matching import Question
from jobs.evaluation.scoring.predictions import PredictionRecord
from jobs.evaluation.scoring.score import read_questions
from jobs.evaluation.showing.timelines import place, ticks
from jobs.toy import clips

STEPS = 200


def made_text(span: Span, *, skill: float, rng: random.Random) -> str:
    start = max(0.0, span[0] + rng.gauss(0, 2.2 - 1.9 * skill))
    end = max(start + 0.5, span[1] + rng.gauss(0, 2.2 - 1.9 * skill))
    return "somewhere" if rng.random() < 0.03 else f"<answer> {start:.1f} to {end:.1f} </answer>"


def made_records(
    questions: Sequence[Question], *, skill: float, version: int
) -> list[PredictionRecord]:
    """Answers that look at the asked object with probability `skill`, else at any of the clip."""
    rng = random.Random(version)
    records = []
    for number, question in enumerate(questions):
        clip = [one.spans[0] for one in questions if one.video == question.video]
        span = question.spans[0] if rng.random() < skill else rng.choice(clip)
        num_samples = 8 if number % 3 == 0 else 0
        records.append(
            PredictionRecord(
                id=question.id,
                video=question.video,
                query=question.query,
                gt=question.spans,
                duration_s=question.duration_s,
                mode="answer",
                text=made_text(span, skill=skill, rng=rng),
                samples=tuple(made_text(span, skill=skill, rng=rng) for _ in range(num_samples)),
                samples_tokens=128 if num_samples else None,
                samples_surprise_nats=128 * (0.6 - 0.35 * skill) if num_samples else None,
                fingerprint="f",
            )
        )
    return records


def made_evaluation(
    questions: Sequence[Question], *, skill: float, version: int, failures: Sequence[int] = ()
) -> Evaluation:
    records = made_records(questions, skill=skill, version=version)
    for number in failures:
        failed = {"text": None, "samples": (), "failure": "video", "error": "x.mp4: 0 bytes"}
        records[number] = records[number].model_copy(update=failed)
    return evaluation_of(records)


def made_metrics() -> list[dict[str, float]]:
    """Lines as the learner writes them, from a run that learns."""
    rng = random.Random(0)
    lines = []
    for step in range(1, STEPS + 1):
        iou = 0.4 + 0.2 * (1 - math.exp(-step / 60)) + rng.gauss(0, 0.035)
        line = {
            "step": step,
            "policy_version": step,
            "reward/reward": 0.45 + iou * 0.6,
            "reward/iou": iou,
            "reward/iou_shaped": 0.1 + iou * 0.9,
            "reward/format": 0.98,
            "reward/injected_reward": 0.90182,
            "reward/best_of_group_iou": iou + 0.2 + rng.gauss(0, 0.02),
            "reward/unscored_fraction": 0.0,
            "intake/staleness_steps_mean": rng.choice([0.9, 1.0, 1.0]),
            "intake/staleness_steps_max": 1.0,
            "rollout/generate_s_mean": 0.3,
            "learner/wait_s": max(0.05, rng.gauss(0.5, 0.15)),
            "learner/step_s": max(0.2, rng.gauss(0.42, 0.04)),
            "learner/publish_s": max(0.05, rng.gauss(0.17, 0.02)),
            "learner/entropy_nats": 0.3 + 0.35 * math.exp(-step / 80) + rng.gauss(0, 0.015),
            "learner/logprob_gap_max_nats": math.exp(rng.gauss(-1.2, 0.4)),
            "learner/grad_norm": 1.0,
            "learner/lr": 3e-4,
        }
        if step % 20 == 0:
            line[PROBE_GAP] = math.exp(rng.gauss(math.log(6e-6), 0.2))
        lines.append(line)
    return lines


def made_validations() -> list[dict[str, float]]:
    """Lines as the learner's validation writes them."""
    return [
        {"step": step, "policy_version": step, "val/miou": miou, "val/r1_at_0.5": miou - 0.03}
        for step, miou in ((0, 0.41), (50, 0.47), (100, 0.52), (150, 0.55), (200, 0.56))
    ]


def made_summary(
    questions: Sequence[Question], start: Evaluation, end: Evaluation, **facts: Any
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "run": "demo",
        "method": "tempsamp",
        "steps": STEPS,
        "seed": 0,
        "eval_split": "test",
        "validation_mode": "answer",
        "wall_s": 402.3,
        "train_wall_s": 251.0,
        "weight_versions": STEPS,
        "groups_trained": STEPS * 8,
        "groups_unscored": 0,
        "policy_version_start": 0,
        "policy_version_end": STEPS,
        "restarts": 0,
    }
    return build_summary(
        RunFacts(**settings | facts),
        start=start,
        end=end,
        baselines=blind_baselines(questions, evaluated=questions),
        metrics=made_metrics(),
    )


@pytest.fixture(scope="module")
def video_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    clips.write_split(folder, "test", num_clips=NUM_CLIPS + 1, num_processes=1)
    return folder


@pytest.fixture(scope="module")
def questions(video_root: Path) -> list[Question]:
    return read_questions(video_root / "test" / "rows.jsonl")[0]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for name, lines in ((METRICS_FILE, made_metrics()), (VALIDATION_FILE, made_validations())):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


class References(HTMLParser):
    """Collects every address a page refers to, and every tag it opens and closes."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open_tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in ("meta", "img", "link", "path", "use"):
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def written(run_dir: Path, questions: list[Question], video_root: Path, **facts: Any) -> str:
    start = made_evaluation(questions, skill=0.2, version=0)
    end = made_evaluation(questions, skill=0.9, version=STEPS)
    path = write_report(
        run_dir,
        summary=made_summary(questions, start, end, **facts),
        start=start,
        end=end,
        video_root=video_root,
    )
    return path.read_text(encoding="utf-8")


def test_page_loads_nothing_from_elsewhere(
    run_dir: Path, questions: list[Question], video_root: Path
) -> None:
    page = written(run_dir, questions, video_root)
    references = References()
    references.feed(page)
    assert references.open_tags == []
    assert len(references.addresses) == NUM_CLIPS
    assert all(address.startswith("data:image/jpeg;base64,") for address in references.addresses)
    assert not re.search(r"https?:|@import|<script|url\((?!#)", page)


def test_page_shows_the_first_dozen_clips_with_truth_and_both_answers(
    run_dir: Path, questions: list[Question], video_root: Path
) -> None:
    page = written(run_dir, questions, video_root)
    assert page.count('<article class="card clip">') == NUM_CLIPS
    assert "test/00011.mp4" in page
    assert "test/00012.mp4" not in page
    first = questions[0]
    assert first.query in page
    true_bar = place(first.spans[0], duration_s=16.0)
    assert page.count(f'class="true" style="{true_bar}"') >= 1
    assert page.count('class="true"') == 3 * NUM_CLIPS
    shown = page.count('class="is"') + page.count('class="none is-none">not readable')
    assert shown == 3 * NUM_CLIPS


def test_page_has_all_curves_and_the_figures_of_the_summary(
    run_dir: Path, questions: list[Question], video_root: Path
) -> None:
    page = written(run_dir, questions, video_root)
    start = made_evaluation(questions, skill=0.2, version=0)
    end = made_evaluation(questions, skill=0.9, version=STEPS)
    for value in (start.greedy.miou, end.greedy.miou, end.greedy.r1_at_0_7):
        assert f"{value:.3f}" in page
    assert page.count('<svg role="img"') == 7
    assert page.count("IoU with the objects not asked for") == 1
    assert "6 min 42 s" in page
    assert "<li>Neither a collapse" in page


def test_text_of_a_model_cannot_become_markup(
    run_dir: Path, questions: list[Question], video_root: Path
) -> None:
    hostile = replace(questions[0], query="<script>alert(1)</script>")
    page = written(run_dir, [hostile, *questions[1:]], video_root, run="<b>run</b>")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>run</b>" not in page


def test_queries_without_an_answer_are_listed(
    run_dir: Path, questions: list[Question], video_root: Path
) -> None:
    start = made_evaluation(questions, skill=0.2, version=0)
    end = made_evaluation(questions, skill=0.9, version=STEPS, failures=[4])
    summary = made_summary(questions, start, end)
    assert (summary["failed_queries_end"], summary["eval_queries"]) == (1, len(questions) - 1)
    path = write_report(run_dir, summary=summary, start=start, end=end, video_root=video_root)
    page = path.read_text(encoding="utf-8")
    assert "<b>1 query got no answer</b>" in page
    assert "<li>line 5 (video): x.mp4: 0 bytes</li>" in page


def test_the_page_of_a_finished_run_is_written_again_from_its_folder(
    run_dir: Path, questions: list[Question], video_root: Path
) -> None:
    page = written(run_dir, questions, video_root)
    start = made_evaluation(questions, skill=0.2, version=0)
    end = made_evaluation(questions, skill=0.9, version=STEPS)
    (run_dir / SUMMARY_FILE).write_text(json.dumps(made_summary(questions, start, end)))
    for name, skill, version in ((ANSWERS_BEFORE, 0.2, 0), (ANSWERS_AFTER, 0.9, STEPS)):
        with Journal(run_dir / name, shard=(1, 1), fingerprint="f") as journal:
            for record in reversed(made_records(questions, skill=skill, version=version)):
                journal.append(record)
    (run_dir / "report.html").unlink()
    main(run_dir, video_root)
    assert (run_dir / "report.html").read_text(encoding="utf-8") == page


def test_a_clip_that_is_gone_and_a_run_without_curves_or_samples_still_give_a_page(
    tmp_path: Path, questions: list[Question]
) -> None:
    start = made_evaluation(questions, skill=0.2, version=0)
    bare = start.model_copy(update={"sampled": None})
    summary = made_summary(questions, bare, bare) | {"max_logprob_gap": None}
    path = write_report(tmp_path, summary=summary, start=bare, end=bare, video_root=tmp_path)
    page = path.read_text(encoding="utf-8")
    assert page.count("the clip is no longer there") == NUM_CLIPS
    assert "Sampled at temperature 1" not in page
    assert "<svg" not in page


@pytest.mark.parametrize(
    ("end", "change", "beside_constant"),
    [
        (0.6, "rose from 0.400 to 0.600", "gets 0.362."),
        (0.3, "fell from 0.400 to 0.300", "gets 0.362, no less."),
        (0.4002, "stayed at 0.400", "gets 0.362."),
    ],
)
def test_verdict_says_which_way_it_went(end: float, change: str, beside_constant: str) -> None:
    summary = {
        "eval_queries": 384,
        "miou_start": 0.4,
        "miou_end": end,
        "best_constant_miou": 0.362,
        "answers_differ_start": None,
        "answers_differ_end": None,
    }
    said = verdict(summary)
    assert said.startswith(f"On 384 held-out queries the mean IoU {change}.")
    assert said.endswith(beside_constant)


def test_summary_takes_the_largest_probe_gap_and_both_ends(questions: list[Question]) -> None:
    start = made_evaluation(questions, skill=0.2, version=0)
    end = made_evaluation(questions, skill=0.9, version=STEPS)
    summary = made_summary(questions, start, end)
    assert end.sampled is not None
    assert summary["max_logprob_gap"] == max(
        line[PROBE_GAP] for line in made_metrics() if PROBE_GAP in line
    )
    assert summary["r1_at_0.5_start"] == start.greedy.r1_at_0_5
    assert summary["best_of_g_end"] == end.sampled.best_of_g
    assert (summary["policy_version_start"], summary["policy_version_end"]) == (0, STEPS)
    assert summary["best_step"] is None
    assert "miou_best" not in summary
    assert summary["contamination"] is None, "no step says it"
    assert {
        *("method", "steps", "seed", "miou_start", "miou_end", "r1_at_0.5_start", "r1_at_0.5_end"),
        *("best_constant_miou", "distractor_iou_end", "answers_differ_end", "entropy_end"),
        *("best_of_g_end", "wall_s", "train_wall_s", "weight_versions", "groups_trained"),
        *("groups_unscored", "max_logprob_gap"),
    } <= summary.keys()
    json.dumps(summary, allow_nan=False)


def test_summary_has_the_version_that_validated_best_and_what_happened_in_groups(
    questions: list[Question],
) -> None:
    start, best, end = (
        made_evaluation(questions, skill=skill, version=version)
        for skill, version in ((0.2, 0), (0.9, 25), (0.7, STEPS))
    )
    key = "advantage/without_hit_share"
    lines = [
        {"step": step, key: float(step <= 20), "reward/iou": step / 100} for step in range(1, 51)
    ]
    facts = dict.fromkeys(RunFacts.__dataclass_fields__, 0)
    summary = build_summary(
        RunFacts(**facts),  # type: ignore[arg-type]
        start=start,
        end=end,
        best=BestEvaluation(25, best),
        baselines=blind_baselines(questions, evaluated=questions),
        metrics=lines,
    )
    assert (summary["best_step"], summary["miou_best"]) == (25, best.greedy.miou)
    assert (summary["train_without_hit_start"], summary["train_without_hit_end"]) == (1.0, 0.0)
    assert summary["train_iou_end"] == pytest.approx(0.405)
    assert summary["injected_advantage"] is None


def test_chart_without_its_metrics_is_left_out() -> None:
    metrics = [{"step": step, "learner/entropy_nats": 0.5} for step in (1, 2, 3)]
    drawings = learning_curves(metrics, validations=[])
    assert [drawing.title for drawing in drawings] == ["Entropy"]
    assert learning_curves([], validations=[]) == []


def test_validations_have_a_chart_of_their_own_with_a_mark_each() -> None:
    drawing, *others = learning_curves(made_metrics(), validations=made_validations())
    assert drawing.title == "Held-out queries while training"
    assert [label for _, label in drawing.legend] == ["mean IoU", "R1@.5"]
    assert drawing.svg.count("<use") == 2 * len(made_validations())
    assert others == learning_curves(made_metrics(), validations=[])
    thought, *_ = learning_curves([], validations=made_validations(), validation_mode="think")
    assert "asked to think" in thought.note
    assert "think" not in drawing.note


def test_charts_keep_no_colour_size_or_name_of_their_own() -> None:
    for drawing in learning_curves(made_metrics(), validations=made_validations()):
        assert not re.search(r"#[0-9a-f]{6}\b", drawing.svg)
        assert not re.search(r'<svg[^>]* (?:width|height)="', drawing.svg)
        assert "font-family" not in drawing.svg
        assert len(drawing.legend) == len(set(drawing.legend))


def test_smoothing_keeps_constants_and_averages_neighbours() -> None:
    assert smoothed([2.0] * 5, window=4) == [2.0] * 5
    assert smoothed([0.0, 3.0, 0.0], window=3) == [1.5, 1.0, 1.5]
    assert smoothed([1.0, 5.0], window=1) == [1.0, 5.0]


def test_ticks_are_round_and_few() -> None:
    assert ticks(16.0) == [
        (0.0, "0"),
        (25.0, "4 s"),
        (50.0, "8 s"),
        (75.0, "12 s"),
        (100.0, "16 s"),
    ]
    assert [label for _, label in ticks(31.0)] == ["0", "10 s", "20 s", "30 s"]
    assert [label for _, label in ticks(180.0)] == ["0:00", "1:00", "2:00", "3:00"]


def test_bars_stay_inside_the_track_and_can_be_seen() -> None:
    assert place((4.0, 8.0), duration_s=16.0) == "left:25.00%;width:25.00%"
    assert place((-3.0, 99.0), duration_s=16.0) == "left:0.00%;width:100.00%"
    assert place((8.0, 8.0), duration_s=16.0) == "left:50.00%;width:0.60%"


def test_durations_read_like_speech() -> None:
    assert duration_text(402.3) == "6 min 42 s"
    assert duration_text(59.6) == "1 min"
    assert duration_text(3725) == "1 h 2 min"
    assert duration_text(0.2) == "0 s"


def test_curves_show_where_a_phase_begins() -> None:
    lines = [
        {"step": float(step), "reward/iou": 0.5, "learner/phase": 1.0 + (step > 3)}
        for step in range(1, 7)
    ]
    assert phase_starts(lines) == [4.0]
    (phased,) = learning_curves(lines, validations=[])
    (plain,) = learning_curves([line | {"learner/phase": 1.0} for line in lines], validations=[])
    assert phased.note.endswith("Dashed: a phase begins.")
    assert "stroke-dasharray" in phased.svg
    assert "Dashed" not in plain.note
    assert "stroke-dasharray" not in plain.svg
