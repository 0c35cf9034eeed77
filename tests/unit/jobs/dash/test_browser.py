"""The page itself, in a headless Chromium: two short real runs are clicked through.

The runs were recorded (tests/fixtures/pages/record_run.py), the process is the one that
docs/dash.md starts. No console error, nothing that axe finds, no text that becomes markup.
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from common.queue.kept_groups import kept_steps, read_groups
from common.rest.fleet_api import LearnerReport, ProblemReport, ReplicaReport
from jobs.dash.watch import Live
from jobs.fleet.services import Fleet, Replica
from jobs.toy.clips import write_some
from tests.fixtures.pages.browser import running
from tests.fixtures.pages.browsing import (
    PATIENCE_MS,
    Open,
    Picture,
    fits,
)
from tests.fixtures.pages.documents import example
from tests.fixtures.pages.run_folder import answer, kept_group, write_groups, write_run
from tests.fixtures.wire import replica_status

pytest.importorskip("playwright", reason="playwright is not installed (the dev lock has it)")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect

ROOT = Path(__file__).resolve().parents[4]
RECORDED = ROOT / "tests/golden/dash"
EVIL = "<img src=x onerror=alert(1)> & <b>bold</b>"
STEPS = 60
LIVE_FROM = 40


@dataclass
class Dash:
    """A running dash and what it looks at."""

    url: str
    runs: Path

    def address(self, page: str, **parameters: object) -> str:
        """Of one of its pages."""
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"{self.url}/#/{page}?{query}"


@pytest.fixture(scope="module")
def dash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dash]:
    """The documented command, over recorded runs and made ones."""
    folder = tmp_path_factory.mktemp("dash")
    runs = folder / "runs"
    for name in ("tempsamp", "grpo"):
        shutil.copytree(RECORDED / name, runs / name)
    newest = read_groups(kept_steps(runs / "tempsamp")[STEPS])
    (folder / "clips/train").mkdir(parents=True)
    write_some(folder / "clips", "train", [int(Path(newest[0].clip.uri).stem)])
    shutil.copytree(RECORDED / "tempsamp", runs / "live", ignore=shutil.ignore_patterns("groups"))
    lines = (RECORDED / "tempsamp/metrics.jsonl").read_text().splitlines(keepends=True)
    (runs / "live/metrics.jsonl").write_text("".join(lines[:LIVE_FROM]))
    hostile = answer(EVIL, reward=0.1, advantage=-0.5, spans=())
    write_run(runs / "hostile", steps=10, changed=lambda _n: {"learner/wait_s": 9.0})
    evil = kept_group(hostile, hostile, query=EVIL)
    part = evil.clip.model_copy(update={"window_s": (2.0, None)})
    write_groups(runs / "hostile", [evil.model_copy(update={"clip": part})])
    with running(example("dash").commands[1], cwd=folder) as url:
        yield Dash(url, runs)


def sentence(page: Page) -> Locator:
    return page.locator("h1.sentence")


def rows(page: Page) -> Locator:
    return page.locator("ol.list > li > a")


def test_a_run_is_seen_at_one_glance(dash: Dash, opened: Open, picture: Picture) -> None:
    page = opened(dash.address("overview", run="tempsamp"))
    expect(sentence(page)).to_have_text(
        re.compile(
            r"^Finished after 60 steps, .*validation mIoU\s\.\d\d\s→\s\.\d\d.*waited \d+\s% of"
        )
    )
    expect(page.locator(".panel canvas")).to_have_count(page.locator(".panel").count())
    reward = page.locator(".panel", has_text="what the policy earns")
    expect(reward.locator(".legend li")).to_have_text(
        [re.compile("policy"), re.compile("injected")]
    )
    expect(page.get_by_text("None answers now")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    picture(page, "overview")
    with page.expect_response("**/api/curves*"):
        page.get_by_role("button", name="Last 200").click()
    expect(page.get_by_role("button", name="Last 200")).to_have_attribute("aria-pressed", "true")
    box = reward.locator(".u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 40, steps=4)
    page.mouse.up()
    expect(page.locator(".zoomed")).to_have_text(re.compile(r"steps 1\d to 4\d"))
    page.get_by_role("button", name="All", exact=True).click()
    expect(page.locator(".zoomed")).to_have_count(0)


def test_a_run_that_grows_moves_the_page(dash: Dash, opened: Open) -> None:
    page = opened(dash.address("overview", run="live"))
    expect(sentence(page)).to_have_text(re.compile(r"^Step 40 of 60, "))
    expect(page.locator("#live")).to_have_text("growing")
    lines = (RECORDED / "tempsamp/metrics.jsonl").read_text().splitlines(keepends=True)
    with (dash.runs / "live/metrics.jsonl").open("a") as file:
        file.write("".join(lines[LIVE_FROM:45]))
    expect(sentence(page)).to_have_text(re.compile(r"^Step 45 of 60, "))


def test_services_are_shown_with_what_went_wrong_last(dash: Dash, opened: Open) -> None:
    page = opened("about:blank")
    silent, lags = (replica_status(name, version=7) for name in ("silent", "lags"))
    problem = ProblemReport(event="weights not applied", error="timeout", age_s=40)
    report = ReplicaReport(
        status=lags,
        tokens_per_s=812.4,
        generates_in_work=0,
        generates_waiting=0,
        last_problem=problem,
    )
    fleet = Fleet(
        run_id="a",
        replicas=(
            Replica(status=silent, unreachable="ConnectError"),
            Replica(status=lags, report=report),
        ),
        learner=LearnerReport(phase="training", version=9, step=9),
    )
    said = f"event: fleet\ndata: {Live(fleet=fleet).model_dump_json()}\n\n"
    page.route(
        "**/api/events*",
        lambda route: route.fulfill(body=said, headers={"content-type": "text/event-stream"}),
    )
    page.goto(dash.address("overview", run="tempsamp"))
    table = page.get_by_role("region", name="Replicas")
    expect(table.locator("tbody tr")).to_have_count(2)
    expect(table.locator("tbody tr").first).to_contain_text("no answer")
    expect(table.locator("tbody tr").first).to_contain_text("ConnectError; was serving")
    expect(table.locator("tbody tr").nth(1)).to_contain_text("40 s ago: weights not applied")
    cells = table.locator("tbody tr").nth(1).locator("td").all_text_contents()
    assert cells[2:7] == ["7", "2", "812", "12", "1"]
    assert fits(page)


def test_a_group_is_found_opened_and_set_beside_another(
    dash: Dash, opened: Open, picture: Picture
) -> None:
    page = opened(dash.address("groups", run="tempsamp", first_step=STEPS))
    expect(page.locator(".count")).to_have_text("8 of 104 groups")
    expect(rows(page).first).to_have_attribute("aria-current", "true")
    expect(page.locator(".film img")).to_be_visible()
    expect(page.locator(".answers > li")).to_have_count(8)
    expect(page.locator(".trow.injected")).to_have_count(1)
    picture(page, "group")
    page.get_by_role("button", name=re.compile("^Injected truth: ")).click()
    injected = page.locator("details.injected")
    expect(injected.locator(".fate")).to_have_text(re.compile("Made more likely.*ratio is 1"))
    first = page.locator("details.answer:not(.injected)").first
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(first.locator(".token").first).to_have_attribute("title", re.compile(r"^p \.\d+, -"))
    expect(first.locator(".facts")).to_contain_text("iou shaped")
    page.get_by_label("Beside it").select_option(index=1)
    expect(page.locator("article.group")).to_have_count(2)
    expect(page.locator("article.group").nth(1)).to_contain_text("grpo, step 60")
    page.evaluate("scrollTo(0, 0)")
    picture(page, "beside")
    page.go_back()
    expect(page.locator("article.group")).to_have_count(1)


def test_filters_narrow_the_list_and_stand_in_the_address(dash: Dash, opened: Open) -> None:
    page = opened(dash.address("groups", run="tempsamp"))
    expect(page.locator(".count")).to_have_text("104 groups")
    expect(rows(page)).to_have_count(60)
    page.get_by_role("button", name="Show more").click()
    expect(rows(page)).to_have_count(104)
    page.get_by_role("button", name="Unread").click()
    expect(page.locator(".count")).to_have_text(re.compile(r"^\d+ of 104 groups$"))
    for row in rows(page).all():
        expect(row).to_contain_text("unread")
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_label("Query, video or row").fill("magenta circle")
    expect(page.locator(".count")).to_have_text(re.compile(r"^\d+ of 104 groups$"))
    expect(rows(page).locator(".query").first).to_contain_text("magenta circle")
    assert "text=magenta+circle" in page.url
    page.reload()
    expect(page.get_by_label("Query, video or row")).to_have_value("magenta circle")
    page.get_by_label("Least mean reward").fill("5")
    expect(page.locator(".list")).to_contain_text("None fits")


def test_two_evaluations_are_compared(dash: Dash, opened: Open, picture: Picture) -> None:
    page = opened(dash.address("evaluation", run="tempsamp"))
    names = [f"tempsamp/validation/version-{version:06d}" for version in (0, STEPS)]
    button = page.get_by_role("button", name="Compare two")
    for name in names:
        expect(button).to_be_disabled()
        page.get_by_label(f"Compare {name}", exact=True).check()
    button.click()
    expect(page.locator("main")).to_contain_text("queries that flipped")
    expect(page.locator("main")).to_contain_text("B - A")
    page.get_by_role("link", name=names[1]).click()
    expect(page.locator("main h1")).to_have_text(names[1])
    expect(page.locator(".histogram")).to_be_visible()
    expect(page.get_by_role("heading", name="Best answers")).to_be_visible()
    picture(page, "evaluation")
    page.get_by_role("link", name="All evaluations").click()
    expect(page.locator("tbody tr")).to_have_count(6)


def test_evaluations_open_without_a_run(opened: Open, tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "tempsamp/validation", tmp_path / "evals")
    with running(["tempsamp", "dash", "."], cwd=tmp_path) as url:
        page = opened(url)
        expect(page.locator("main")).to_contain_text("No run here yet")
        page.get_by_role("link", name="Evaluations in this folder").click()
        page.get_by_role("link", name=f"evals/version-{STEPS:06d}").click()
        expect(page.locator("main h1")).to_have_text(f"evals/version-{STEPS:06d}")
        expect(page.locator(".histogram")).to_be_visible()
        page.get_by_role("link", name="All evaluations").click()
        expect(page.locator("tbody tr")).to_have_count(2)


def test_text_from_models_and_rows_stays_text(dash: Dash, opened: Open) -> None:
    page = opened(dash.address("overview", run="hostile"), narrow=True)
    expect(page.locator(".advice .card.hint")).to_contain_text("more replicas")
    page = opened(dash.address("groups", run="hostile"))
    expect(page.locator(".asked q")).to_have_text(EVIL)
    asks = page.get_by_role("link", name="Ask about this video").get_attribute("href") or ""
    asked = parse_qs(asks.partition("?")[2])
    assert (asked["query"], asked["start_s"]) == ([EVIL], ["2"])
    assert "end_s" not in asked
    expect(page.locator(".asked .meta")).to_contain_text("s from 2 s on")
    page.locator("summary").first.click()
    expect(page.locator("details[open] .tokens")).to_contain_text("onerror=alert(1)>")
    assert page.locator("main img[src='x'], main b >> text='bold'").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(dash: Dash, opened: Open, scheme: str) -> None:
    page = opened(dash.address("overview", run="tempsamp"), scheme=scheme)
    places = {
        "overview": {"run": "tempsamp"},
        "groups": {"run": "tempsamp", "first_step": STEPS},
        "evaluation": {"run": "tempsamp"},
    }
    for name, parameters in places.items():
        page.goto(dash.address(name, **parameters))
        page.locator("main .loading").first.wait_for(state="detached")
        expect(page.locator("main .panel, main .list a, main tbody tr").first).to_be_visible()
        if name == "groups":
            page.locator("summary").first.click()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_a_phone_shows_everything_without_scrolling_sideways(
    dash: Dash, opened: Open, picture: Picture
) -> None:
    page = opened(dash.address("overview", run="tempsamp"), narrow=True, scheme="dark")
    expect(sentence(page)).to_be_visible()
    assert fits(page)
    page.goto(dash.address("groups", run="tempsamp", first_step=STEPS))
    rows(page).first.click()
    expect(page.locator(".film img")).to_be_visible()
    expect(rows(page).first).to_be_hidden()
    assert fits(page)
    picture(page, "phone")
    page.get_by_role("link", name="All groups").click()
    expect(rows(page).first).to_be_visible()
    assert "first_step=60" in page.url
    page.goto(dash.address("evaluation", run="tempsamp"))
    expect(page.locator("tbody tr")).to_have_count(6)
    assert fits(page)


def test_the_scheme_is_the_system_s_until_another_is_chosen(dash: Dash, opened: Open) -> None:
    page = opened(dash.address("overview", run="tempsamp"), scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(14, 16, 20)"
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate(ground) == "rgb(246, 246, 243)"
    page.reload()
    assert page.evaluate(ground) == "rgb(246, 246, 243)"


def test_a_run_without_groups_says_how_to_have_them(dash: Dash, opened: Open) -> None:
    page = opened(dash.address("groups", run="live"))
    expect(page.locator(".detail")).to_contain_text("learner.keep_groups.every")


def test_a_token_is_asked_for_and_kept_for_the_tab(dash: Dash, browser: Browser) -> None:
    """Apart from `opened`: a browser prints every 401 to its console."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)

    def guarded(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, body="{}")

    page.route("**/api/**", guarded)
    page.goto(dash.address("overview", run="tempsamp"))
    for token in ("wrong", "right"):
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Open").click()
    expect(sentence(page)).to_be_visible()
    page.reload()
    expect(sentence(page)).to_be_visible()
    page.close()


def test_a_dash_that_is_gone_is_said_and_asked_again(dash: Dash, browser: Browser) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.route("**/api/runs*", lambda route: route.abort())
    page.goto(dash.address("overview", run="tempsamp"))
    expect(page.get_by_role("alert")).to_contain_text("Is tempsamp dash still running?")
    page.unroute("**/api/runs*")
    page.get_by_role("button", name="Try again").click()
    expect(sentence(page)).to_be_visible()
    page.close()


def test_ten_thousand_steps_open_with_few_and_small_answers(dash: Dash, opened: Open) -> None:
    line = json.loads((RECORDED / "tempsamp/metrics.jsonl").read_text().splitlines()[-1])
    folder = dash.runs / "long"
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({**line, "step": step}) + "\n" for step in range(1, 10_001))
    sizes: list[int] = []
    page = opened("about:blank")
    page.on("response", lambda answer: sizes.append(int(answer.headers.get("content-length", 0))))
    page.goto(dash.address("overview", run="long"))
    expect(sentence(page)).to_have_text(re.compile(r"^Step 10,000, "))
    expect(page.locator(".panel canvas").first).to_be_visible()
    assert sum(sizes) < 1_500_000
    shutil.rmtree(folder)
