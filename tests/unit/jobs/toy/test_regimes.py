"""Regimes: what their clips and rows are like, and that clips of equal options are shared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.answers.reading import read_spans
from jobs.toy import clips, regimes
from jobs.toy.regimes import REGIMES


def rows_of(data: Path, name: str, split: clips.Split, *, num_clips: int) -> list[dict[str, Any]]:
    """Rows as a run of the regime finds them, without rendering a clip."""
    regime = REGIMES[name]
    for index in range(num_clips):
        path = regime.video_root(data) / clips.clip_path(split, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    written = regimes.write_split(data, regime, split, num_clips=num_clips)
    assert written == regime.rows(data, split)
    return [json.loads(line) for line in written.read_text().splitlines()]


@pytest.mark.parametrize("name", REGIMES)
def test_rows_say_what_the_clips_of_their_regime_show(name: str, tmp_path: Path) -> None:
    regime = REGIMES[name]
    rows = rows_of(tmp_path / "data", name, "validation", num_clips=20)
    events = [
        e for i in range(20) for e in clips.scene_events("validation", i, options=regime.options)
    ]
    assert [row["query"] for row in rows] == [event.query for event in events]
    for row, event in zip(rows, events, strict=True):
        assert [tuple(span) for span in row["spans"]] == list(event.spans_s)
        assert read_spans(row["answer"]).spans == event.spans_s
        assert row["duration"] == regime.options.duration_s
        assert row["query"] in row["problem"]
        for start, end in event.spans_s:
            least, most = regime.options.min_span_s, regime.options.max_span_s
            assert least - 1e-6 <= end - start <= most + 1e-6
            assert 0 <= start < end <= regime.options.duration_s


def test_full_few_and_noisy_show_the_same_clips(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert {REGIMES[name].video_root(data) for name in ("full", "few", "noisy")} == {data}
    own = REGIMES.keys() - {"hybrid"}
    assert len({REGIMES[name].rows(data, "train") for name in own}) == len(own)
    assert REGIMES["hybrid"].rows(data, "train") == REGIMES["full"].rows(data, "train")
    full = rows_of(data, "full", "train", num_clips=16)
    assert rows_of(data, "few", "train", num_clips=16) == full
    assert REGIMES["few"].train_clips == 16
    assert REGIMES["full"].rows(data, "train") == data / "train/rows.jsonl"


def test_noise_moves_both_ends_of_training_labels_alone(tmp_path: Path) -> None:
    """Over 900 labels of the training split the ends move by 1.2 s; clipping takes a little."""
    data = tmp_path / "data"
    exact, moved = (rows_of(data, name, "train", num_clips=300) for name in ("full", "noisy"))
    again = rows_of(data, "noisy", "train", num_clips=20)
    assert again == moved[:60], "a label depends on its clip alone"
    shifts = np.array([m["spans"][0] for m in moved]) - np.array([e["spans"][0] for e in exact])
    assert np.std(shifts, axis=0) == pytest.approx([1.2, 1.2], abs=0.15)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.2
    for row in moved:
        ((start, end),) = row["spans"]
        assert 0 <= start < end <= row["duration"]
        assert end - start >= regimes.LEAST_LABEL_S - 1e-9
        assert read_spans(row["answer"]).spans == ((start, end),)
        assert row["gt_len"] == pytest.approx(end - start)
    held_out = [rows_of(data, name, "test", num_clips=5) for name in ("full", "noisy")]
    assert held_out[0] == held_out[1]


def test_queries_of_several_have_one_to_three_spans_apart(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "data", "several", "train", num_clips=200)
    counts = np.bincount([len(row["spans"]) for row in rows])
    assert counts[0] == 0
    assert counts[1:].tolist() == pytest.approx([200, 200, 200], abs=40)
    for row in rows:
        ends = [end for _, end in row["spans"]]
        starts = [start for start, _ in row["spans"]]
        gaps = [start - end for start, end in zip(starts[1:], ends, strict=False)]
        assert all(gap >= 1.5 for gap in gaps)
    assert "<answer> 1.5 to 4.8, 9.0 to 12.5 </answer>" in rows[0]["problem"]


def test_a_shape_of_several_times_is_drawn_in_each() -> None:
    options = REGIMES["several"].options
    index = next(
        i
        for i in range(50)
        if len(clips.scene_events("train", i, options=options)[-1].spans_s) == 3
    )
    event = clips.scene_events("train", index, options=options)[-1]  # drawn last: nothing hides it
    frames = clips.render_clip("train", index, options=options).astype(float)
    close = np.linalg.norm(frames - np.array(clips.COLORS[event.color]), axis=-1) < 90
    times_s = np.arange(options.num_frames) / clips.SOURCE_FPS
    seen = close.sum((1, 2)) > 60
    assert np.mean(seen == event.is_visible(times_s)) > 0.95


def test_random_answers_hardly_ever_hit_in_long() -> None:
    """Three of a thousand random spans as long as the truth reach IoU .5: the paper's premise."""
    options = REGIMES["long"].options
    rng = np.random.default_rng(0)
    hits = []
    for index in range(300):
        for event in clips.scene_events("test", index, options=options):
            start, end = event.span_s
            guess = rng.uniform(0, options.duration_s - (end - start))
            overlap = max(0.0, (end - start) - abs(guess - start))
            hits.append(overlap / (2 * (end - start) - overlap) >= 0.5)
    assert np.mean(hits) < 0.06
