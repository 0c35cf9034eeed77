"""A run of 10,000 steps beside one of 100, in one headless Chromium: opening, scrolling, growing.

Nothing here is an absolute time (those are in docs/dash.md, `make bench-dash`): the long run is set
against the short one in the same browser on the same server.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.dash.drawing.curves import BUCKETS
from tests.fixtures.pages.browser import (
    CHROMIUM,
    PATIENCE_MS,
    Opening,
    forget,
    running,
    seen,
    timed,
    wait_until_drawn,
    wait_until_draws,
    watched,
)
from tests.fixtures.pages.long_run import lines, write_long_run
from tests.fixtures.pages.run_folder import kept_group, write_groups

pytest.importorskip("playwright", reason="playwright is not installed (the dev lock has it)")
from playwright.sync_api import Browser, Expect, Page

if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (chromium, google-chrome)", allow_module_level=True)
STEPS = {"short": 100, "long": 10_000}
GROUPS_EVERY = {"short": 1, "long": 25}
REPEATS = 3
NOISE = 4.0
"""By which a measurement may be off on a busy machine."""
TWO_FRAMES_MS = 34.0
"""One that is missed now and then has nothing to do with a run's length."""
expect = Expect()
"""Of this file alone: whoever sets the timeout of playwright's own sets that of all files."""
expect.set_options(timeout=PATIENCE_MS)


@dataclass(frozen=True)
class Dash:
    """One process over both runs."""

    url: str
    runs: Path


@pytest.fixture(scope="module")
def dash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dash]:
    runs = tmp_path_factory.mktemp("long") / "runs"
    for name, steps in STEPS.items():
        write_long_run(runs / name, steps=steps, groups_every=GROUPS_EVERY[name])
    with running(["tempsamp", "dash", "runs"], cwd=runs.parent) as url:
        yield Dash(url, runs)


@pytest.fixture(scope="module", params=["overview", "groups"])
def openings(
    dash: Dash, browser: Browser, request: pytest.FixtureRequest
) -> dict[str, list[Opening]]:
    """Each run opened in turn, once to warm up."""
    found: dict[str, list[Opening]] = {name: [] for name in STEPS}
    for _ in range(REPEATS + 1):
        for name, done in found.items():
            address = f"{dash.url}/#/{request.param}?run={name}"
            done.append(timed(browser, address, page_name=request.param))
    return {name: done[1:] for name, done in found.items()}


def median(openings: list[Opening], of: str) -> float:
    return statistics.median(getattr(one, of) for one in openings)


def test_a_long_run_opens_like_a_short_one(openings: dict[str, list[Opening]]) -> None:
    long, short = (median(openings[name], "drawn_ms") for name in ("long", "short"))
    assert long < NOISE * short, (long, short)


def test_a_long_run_scrolls_like_a_short_one(openings: dict[str, list[Opening]]) -> None:
    def worst(name: str) -> float:
        return statistics.median(
            sorted(one.gaps_ms)[int(0.95 * len(one.gaps_ms))] for one in openings[name]
        )

    assert worst("long") < NOISE * max(worst("short"), TWO_FRAMES_MS)
    long, short = (
        statistics.median(sum(one.long_ms) for one in openings[name]) for name in ("long", "short")
    )
    assert long <= NOISE * max(short, 50.0), "no work is done because somebody scrolls"


def test_a_long_run_has_no_more_elements_than_a_short_one(
    openings: dict[str, list[Opening]],
) -> None:
    nodes = {name: median(done, "nodes") for name, done in openings.items()}
    # How many parts of a list were scrolled to depends on the machine.
    assert nodes["long"] <= 2 * nodes["short"]
    assert nodes["long"] < 3000


def opened(browser: Browser, address: str) -> Page:
    page = watched(browser.new_page(reduced_motion="reduce"), page_name="overview")
    page.goto(address)
    wait_until_drawn(page)
    return page


def test_points_are_bounded_whatever_the_length(dash: Dash, browser: Browser) -> None:
    page = opened(browser, f"{dash.url}/#/overview?run=long")
    panels = page.evaluate("fetch('api/curves?run=long').then((answer) => answer.json())")
    counts = [len(lines["x"]) for panel in panels for lines in panel["lines"]]
    assert len(counts) > 10
    assert max(counts) == 2 * BUCKETS
    assert all(
        len(curve["values"]) == len(lines["x"])
        for panel in panels
        for lines in panel["lines"]
        for curve in lines["curves"]
    )
    page.close()


def grow(dash: Dash, first: int, last: int) -> None:
    """The learner goes on."""
    with (dash.runs / "long/metrics.jsonl").open("a") as file:
        file.writelines(lines(last, first=first))


def test_a_step_more_moves_figures_and_draws_no_curve(dash: Dash, browser: Browser) -> None:
    settings = (dash.runs / "long/config.json").read_text()
    (dash.runs / "long/config.json").write_text(
        settings.replace('"steps": 10000', '"steps": 20000')
    )
    page = opened(browser, f"{dash.url}/#/overview?run=long")
    sentence = page.locator("h1.sentence")
    expect(sentence).to_contain_text("Step 10,000 of 20,000")
    expect(page.locator("#live")).to_have_text("growing")
    entropy = page.locator(".panel", has_text="Entropy").locator(".legend b")
    page.wait_for_timeout(200)  # what is drawn at the start is drawn
    for step in (10_001, 10_002):
        forget(page)
        before = entropy.text_content()
        grow(dash, step, step)
        expect(sentence).to_contain_text(f"Step {step:,} of")
        expect(entropy).not_to_have_text(before or "")
        found = seen(page)
        assert found["draws"] == 0
        assert not any("api/curves" in address for address in found["asked"])
    forget(page)
    grow(dash, 10_003, 10_060)
    expect(sentence).to_contain_text("Step 10,060 of")
    wait_until_draws(page)
    page.wait_for_timeout(300)
    panels = page.locator(".panel").count()
    assert 0 < seen(page)["draws"] < panels, "only those in sight"
    forget(page)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    wait_until_draws(page)
    page.close()


def test_groups_are_counted_while_the_newest_are_read(dash: Dash, browser: Browser) -> None:
    page = watched(browser.new_page(), page_name="groups")
    with running(["tempsamp", "dash", "runs"], cwd=dash.runs.parent) as url:
        page.goto(f"{url}/#/groups?run=long")
        wait_until_drawn(page)
        expect(page.locator(".count")).to_have_text("3,200 groups")
        asked = [address for address in seen(page)["asked"] if "api/groups?" in address]
        assert [("at_once" in address) for address in asked] == [True, False]
        assert page.locator("ol.list > li > a").count() == 60
        page.close()


def test_a_list_that_grows_keeps_its_rows_and_the_focus(dash: Dash, browser: Browser) -> None:
    page = watched(browser.new_page(), page_name="groups")
    page.goto(f"{dash.url}/#/groups?run=short")
    rows = page.locator("ol.list > li > a")
    expect(rows).to_have_count(60)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(120)
    rows.nth(70).focus()
    focused = page.evaluate("document.activeElement.dataset.key")
    expect(page.locator("#live")).to_have_text("finished")
    write_groups(dash.runs / "short", [kept_group(step=101, query="the newest of all")])
    expect(rows.first).to_contain_text("the newest of all")
    expect(rows).to_have_count(120)
    assert page.evaluate("document.activeElement.dataset.key") == focused
    page.close()
