"""Curves have few points whatever a run's length, and lose no spike."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from jobs.dash.drawing.curves import BUCKETS, PANELS, DrawnPanel, latest, panels, values_of
from jobs.dash.drawing.decimation import buckets_of, extremes, places, smoothed, window
from jobs.dash.folder import RunFolder
from services.learner.metrics import series_of
from tests.fixtures.pages.run_folder import validated, write_run

MOST_BYTES = 600_000
"""Of all panels of a run of any length: a second on a slow phone."""


@pytest.mark.parametrize("count", [0, 1, 2, 7, 20, 21, 999])
def test_places_and_values_match_and_are_few(count: int) -> None:
    steps = np.arange(1, count + 1, dtype=np.float64)
    edges = buckets_of(count, num_buckets=10)
    x, y = places(steps, edges=edges), extremes(steps**2, edges=edges)
    assert len(x) == len(y) <= 20
    assert x == sorted(x)
    if count:
        assert (x[0], x[-1]) == (1, count)
        assert (y[0], y[-1]) == (1, float(f"{count**2:.6g}"))


def test_a_spike_of_one_step_in_ten_thousand_stays() -> None:
    values = np.zeros(10_000)
    values[6_543], values[1_234] = 9.0, -4.0
    edges = buckets_of(len(values), num_buckets=BUCKETS)
    drawn = extremes(values, edges=edges)
    assert (max(v for v in drawn if v is not None), min(v for v in drawn if v is not None)) == (
        9,
        -4,
    )
    x = places(np.arange(10_000.0), edges=edges)
    assert abs(x[drawn.index(9.0)] - 6_543) <= 10_000 / BUCKETS


def test_gaps_stay_gaps_and_a_lone_value_is_drawn() -> None:
    values = np.full(100, np.nan)
    values[50] = 3.0
    edges = buckets_of(100, num_buckets=5)
    assert extremes(values, edges=edges) == [None] * 4 + [3.0, 3.0] + [None] * 4
    assert np.isnan(smoothed(values)).sum() == 99


def test_smoothing_averages_and_starts_where_the_values_start() -> None:
    rng = np.random.default_rng(0)
    values = 5 + rng.normal(size=1000)
    calm = smoothed(values)
    assert calm[0] == values[0]
    assert calm[200:].std() < values[200:].std() / 3
    assert abs(calm[200:].mean() - 5) < 0.1


def test_a_window_of_steps_is_cut_out() -> None:
    steps = [2.0, 4.0, 6.0, 8.0]
    assert steps[window(steps, low=3, high=6)] == [4, 6]
    assert steps[window(steps, low=None, high=None)] == steps
    assert steps[window(steps, low=9, high=3)] == []


def drawn(folder: Path, **range_: float) -> dict[str, DrawnPanel]:
    run = RunFolder(folder, "a")
    return {panel.name: panel for panel in panels(run.metrics(), run.validation(), **range_)}


def test_injected_rows_have_curves_of_their_own_and_empty_panels_are_left_out(
    tmp_path: Path,
) -> None:
    found = drawn(write_run(tmp_path, validation=[validated(0, 0.4), validated(50, 0.5)]))
    reward = {curve.label: curve for curve in found["reward"].lines[0].curves}
    assert set(reward) == {"policy", "injected"}
    assert reward["injected"].last == 0.9
    assert [len(lines.x) for lines in found["grounding"].lines] == [100, 2]
    assert found["parts"].lines[0].curves[0].label == "format, policy"
    assert {"kl", "gradient"}.isdisjoint(found)


def test_the_newest_values_are_those_that_curves_end_with(tmp_path: Path) -> None:
    folder = write_run(tmp_path, steps=700, validation=[validated(0, 0.4), validated(50, 0.5)])
    run = RunFolder(folder, "a")
    newest = latest(run.metrics(), run.validation())
    ends = {
        name: {curve.label: curve.last for lines in panel.lines for curve in lines.curves}
        for name, panel in drawn(folder).items()
    }
    assert {name: newest[name] for name in ends} == ends
    assert latest(RunFolder(tmp_path / "none", "a").metrics(), run.validation())["grounding"] == {
        "held out": 0.5
    }


def test_what_is_switched_off_has_no_panel(tmp_path: Path) -> None:
    assert "kl" not in drawn(write_run(tmp_path / "off", changed=lambda _n: {"learner/kl_nats": 0}))
    assert "kl" in drawn(write_run(tmp_path / "on", changed=lambda _n: {"learner/kl_nats": 0.1}))


def test_throughput_is_groups_over_the_time_of_their_step(tmp_path: Path) -> None:
    metrics = RunFolder(write_run(tmp_path, steps=3), "a").metrics()
    assert values_of(metrics, "groups_a_minute") == pytest.approx([60 * 8 / 2.0] * 3)


def test_ten_thousand_steps_travel_in_bounded_bytes_and_zooming_shows_each(tmp_path: Path) -> None:
    everything = {curve.key: 0.123456 for panel in PANELS for curve in panel.curves}
    lines = [validated(n, 0.5) for n in range(0, 10_000, 50)]
    folder = write_run(tmp_path, steps=10_000, changed=lambda _n: everything, validation=lines)
    found = drawn(folder)
    size = len(TypeAdapter(list[DrawnPanel]).dump_json(list(found.values())))
    assert size < MOST_BYTES, size
    for panel in found.values():
        for part in panel.lines:
            assert len(part.x) <= 2 * BUCKETS
            for curve in part.curves:
                assert len(curve.values) == len(part.x)
                assert curve.smooth is None or len(curve.smooth) == len(part.x)
    near = drawn(folder, low=5_000, high=5_099)["reward"].lines[0]
    assert near.x == list(range(5_000, 5_100))


def test_every_key_is_one_that_the_learner_writes() -> None:
    keys = {curve.key for panel in PANELS for curve in panel.curves} - {"groups_a_minute"}
    assert not [key for key in keys if series_of(key) is None]
    assert len({panel.name for panel in PANELS}) == len(PANELS)
