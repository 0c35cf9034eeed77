"""A run that trains, watched in a headless Chromium from before its first step to its end."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.local.redis import free_port
from jobs.toy import clips
from tests.fixtures.pages.browser import CHROMIUM, chromium, running
from tests.ring.conftest import Ring
from tests.ring.test_learner import LearnerProcess

pytest.importorskip("playwright", reason="playwright is not installed (the dev lock has it)")
from playwright.sync_api import Expect, Page

if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (chromium, google-chrome)", allow_module_level=True)

pytestmark = pytest.mark.timeout(900)
PATIENCE_MS = 120_000
"""A learner loads for a quarter of a minute, on a busy machine for longer."""
expect = Expect()
"""Of this file alone: whoever sets the timeout of playwright's own sets that of all files."""
expect.set_options(timeout=PATIENCE_MS)
STEPS = 40


@pytest.fixture
def folder(ring: Ring) -> Path:
    """Of runs, none of them there yet."""
    folder = ring.folder / "watched"
    folder.mkdir()
    clips.write_split(ring.folder / "watched-clips", "train", num_clips=24)
    return folder


@pytest.fixture
def page(ring: Ring, folder: Path) -> Iterator[Page]:
    """The dash over them, with the ring's secrets; its console has no error to the end."""
    said: list[str] = []
    words = ["tempsamp", "dash", str(folder)]
    with running(words, cwd=folder, environ=ring.environ) as url, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.goto(url)
        page.get_by_label("Token").fill(ring.environ["TEMPSAMP_TOKEN"])
        # The first question, before a token was known, is refused: the browser notes that.
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.get_by_role("button", name="Open").click()
        yield page
    assert said == []


@pytest.fixture
def learner(ring: Ring, folder: Path, page: Page) -> Iterator[LearnerProcess]:
    """Started while somebody looks at nothing yet."""
    expect(page.get_by_role("heading", name="No run here yet")).to_be_visible()
    learner = LearnerProcess(
        ring,
        learner__run_dir=str(folder / "live"),
        learner__rows=str(ring.folder / "watched-clips/train/rows.jsonl"),
        shared__video__roots=[str(ring.folder / "watched-clips")],
        learner__steps=STEPS,
        learner__groups_per_step=4,
        learner__checkpoint_every=0,
        learner__probe_every=0,
        learner__metrics_port=free_port(),
    )
    yield learner
    if learner.process.poll() is None:
        learner.kill()


def number_in(pattern: str, text: str | None) -> int:
    found = re.search(pattern, text or "")
    assert found, text
    return int(found[1])


def test_a_ring_is_watched_from_its_first_step_to_its_end(
    ring: Ring, page: Page, learner: LearnerProcess
) -> None:
    page.evaluate("window.never_reloaded = true")
    sentence, services = page.locator("h1.sentence"), page.locator("section.services")
    expect(sentence).to_have_text(re.compile(rf"^Step \d+ of {STEPS}, "))
    first = sentence.text_content()
    expect(services.get_by_role("region", name="Replicas")).to_contain_text("serving")
    expect(services).to_contain_text("training, version")
    expect(sentence).not_to_have_text(first or "")

    # Without its only replica the run stands still, for long enough to look at it.
    os.kill(ring.rollout.process.pid, signal.SIGSTOP)
    try:
        expect(services).to_contain_text(re.compile("no answer|No replica is registered"))
        seen = number_in(r"^Step (\d+) of", sentence.text_content())
        assert seen > number_in(r"^Step (\d+) of", first), "it moved"
        open_the_newest_group(page, least_step=seen)
    finally:
        os.kill(ring.rollout.process.pid, signal.SIGCONT)
    page.get_by_role("link", name="Overview").click()
    expect(services.get_by_role("region", name="Replicas")).to_contain_text("serving")
    learner.finish()
    expect(sentence).to_have_text(re.compile(f"^Finished after {STEPS} steps"))
    expect(page.locator("#live")).to_have_text("finished")
    expect(page.locator(".chip.finished")).to_have_text("Finished")
    assert page.evaluate("window.never_reloaded"), "all of it came by the stream"


def open_the_newest_group(page: Page, *, least_step: int) -> None:
    """Find it in the list, look at its answers, filter for its query."""
    page.get_by_role("link", name="Groups").click()
    rows = page.locator("ol.list > li > a")
    expect(rows.first).to_be_visible()
    assert number_in(r"step (\d+)", rows.first.text_content()) >= least_step
    rows.first.click()
    expect(page.locator("article.group")).to_have_count(1)
    expect(page.locator(".answers > li")).to_have_count(8)
    expect(page.locator(".trow.injected")).to_have_count(1)
    expect(page.locator(".film img")).to_be_visible()
    query = page.locator(".asked q").text_content() or ""
    expect(rows.filter(has_text=query).first).to_be_visible()
    page.get_by_label("Query, video or row").fill(query)
    expect(page.locator(".count")).to_have_text(re.compile(r"^\d+ of \d+ groups$"))
    for text in rows.locator(".query").all_text_contents():
        assert query in text
