"""The playground in a headless Chromium: a clip, a question, spans, a loop, both exports.

Two stand-ins for replicas say what two recorded policies said about the same query and clip
(tests/golden/dash). A real engine answers in tests/ring/test_held_out_answers.py.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import pytest

from common.messages import GeneratedAnswer, GenerateRequest, Sample, VersionSpan
from common.queue.kept_groups import KeptAnswer, KeptGroup, kept_steps, read_groups
from jobs.toy.clips import write_some
from tests.fixtures.pages.browser import running
from tests.fixtures.pages.browsing import (
    PATIENCE_MS,
    Open,
    Picture,
    fits,
)
from tests.fixtures.pages.documents import example
from tests.fixtures.pages.run_folder import SETTINGS, write_run
from tests.fixtures.replicas.stand_in_replica import StandIn, question_of, refuse, serving

pytest.importorskip("playwright", reason="playwright is not installed (the dev lock has it)")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect

ROOT = Path(__file__).resolve().parents[4]
RECORDED = ROOT / "tests/golden/dash"
QUERY = "the magenta square is visible"
CLIP = 97
STEPS = 60
REFUSAL = "found 9000 prompt tokens, wanted at most 900: shared.max_prompt_tokens"


@dataclass
class Place:
    """The documented dash, beside models that need no loading, and a video."""

    url: str
    first: StandIn
    second: StandIn
    video: Path
    folder: Path

    @property
    def page(self) -> str:
        """Address of the playground."""
        return f"{self.url}/#/playground?run=mine&model=replica-1"


def recorded(run: str) -> KeptGroup:
    groups = read_groups(kept_steps(RECORDED / run)[STEPS])
    return next(one for one in groups if one.query == QUERY and f"{CLIP}.mp4" in one.clip.uri)


def said_again(kept: KeptAnswer) -> GeneratedAnswer:
    ends = itertools.accumulate(len(token) for token in kept.tokens)
    count = len(kept.tokens)
    sample = Sample(
        token_ids=(5,) * count,
        logprobs=kept.logprobs,
        version_spans=(VersionSpan(version=STEPS, start=0, end=count),),
        finish_reason="stop",
        provenance="policy",
    )
    return GeneratedAnswer(
        sample=sample,
        text=kept.text,
        token_ends=tuple(min(end, len(kept.text)) for end in ends),
    )


@contextlib.contextmanager
def policy(run: str) -> Iterator[StandIn]:
    """What a recorded policy said, as often as it is asked for; and a refusal."""
    own = [one for one in recorded(run).answers if one.provenance == "policy"]

    def answer(request: GenerateRequest) -> "str | Sequence[GeneratedAnswer]":
        if "refuse" in question_of(request):
            return refuse(422, REFUSAL)
        if "mumble" in question_of(request):
            return "no idea when <b>that</b> was"
        chosen = own if request.sampling.temperature else own[-1:]
        return [said_again(one) for one in chosen[: request.num_samples]]

    with serving(answer, version=STEPS) as replica:
        yield replica


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("playground")
    (folder / "videos/train").mkdir(parents=True)
    write_some(folder / "videos", "train", [CLIP])
    shared = {**SETTINGS["shared"], "video": {"roots": [str(folder / "videos")]}}
    run = write_run(folder / "runs/mine", steps=3, settings={**SETTINGS, "shared": shared})
    for copy in (run / "checkpoints/step-000200/hf", folder / "deploy/tiny-qwen3vl"):
        copy.mkdir(parents=True)
        for path in (ROOT / "deploy/tiny-qwen3vl").iterdir():
            (copy / path.name).symlink_to(path)
    with policy("tempsamp") as first, policy("grpo") as second:
        models = [word for one in (first, second) for word in ("--endpoint", one.url)]
        words = [*example("playground").commands[0], *models, "--max-upload-mb", "3"]
        with running(words, cwd=folder) as url:
            video = folder / f"videos/train/{CLIP:05d}.mp4"
            yield Place(url, first, second, video, folder)


@pytest.fixture
def loud(browser: Browser) -> Iterator[Page]:
    """Apart from `opened`: a browser prints every refusal to its console."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    yield page
    page.close()


def give(page: Page, video: Path) -> None:
    page.locator("#file").set_input_files(video)
    expect(page.locator("video")).to_be_visible()
    expect(page.locator(".film img")).to_be_visible()


def ask(page: Page, query: str = QUERY) -> None:
    page.get_by_label("When does it happen?").fill(query)
    page.keyboard.press("Enter")


def until(page: Page, holds: str) -> None:
    """The page's own policy forbids that it waits for an expression."""
    for _ in range(PATIENCE_MS // 50):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(50)
    raise AssertionError(holds)


def lanes(page: Page) -> Locator:
    return page.locator(".lanes > li")


def test_a_dropped_clip_is_asked_about_looped_and_exported(
    place: Place, opened: Open, picture: Picture, tmp_path: Path
) -> None:
    page = opened(place.page)
    expect(page.get_by_text("Drop a video here")).to_be_visible()
    file = page.evaluate_handle(
        """bytes => {
            const dropped = new DataTransfer(), content = new Uint8Array(bytes);
            dropped.items.add(new File([content], "my trip.mp4", { type: "video/mp4" }));
            return dropped;
        }""",
        list(place.video.read_bytes()),
    )
    page.dispatch_event(".playground", "drop", {"dataTransfer": file})
    expect(page.locator(".stage .meta")).to_have_text("my trip.mp416 s64 x 64")
    page.get_by_label("Samples").fill("7")
    page.get_by_label("Beside it").select_option("replica-2")
    ask(page)
    expect(page.locator(".model")).to_have_count(2)
    first = page.locator(".model").first
    expect(first.locator(".lead")).to_have_text("2.00 to 9.50 s, confidence 86 %.")
    expect(first.locator(".note").first).to_contain_text("share of all samples")
    expect(first.locator("details.answer")).to_have_count(8)
    assert lanes(page).count() == page.locator(".found > li").count()
    expect(page.locator(".film img")).to_be_visible()
    page.evaluate("document.querySelector('video').currentTime = 4")
    picture(page, "playground")

    first.locator("summary").first.click()
    expect(first.locator(".token").first).to_have_attribute(
        "title", re.compile(r"^p \.99\d, -0\.0\d nats$")
    )
    expect(first.locator("details[open] .note")).to_contain_text("least likely")
    page.evaluate(
        """() => {
            window.starts = 0;
            const video = document.querySelector("video");
            video.playbackRate = 8;
            const came = () => { if (Math.abs(video.currentTime - 2) < .1) starts++; };
            video.addEventListener("seeked", came);
        }"""
    )
    loop = page.get_by_role("button", name="Loop A1", exact=True)
    loop.click()
    until(page, "starts >= 2")
    assert 1.8 <= page.evaluate("document.querySelector('video').currentTime") <= 10.2
    expect(loop).to_have_attribute("aria-pressed", "true")
    loop.click()
    expect(loop).to_have_attribute("aria-pressed", "false")
    lanes(page).nth(1).get_by_role("button").click()
    assert not page.evaluate("document.querySelector('video').paused")

    with page.expect_download() as cut:
        page.get_by_role("button", name="Export clip of A1").click()
    assert cut.value.suggested_filename == "my trip-2.00-9.50.mp4"
    cut.value.save_as(tmp_path / "cut.mp4")
    expect(page.get_by_text("of the video")).to_contain_text("my trip-2.00-9.50.mp4: ")
    with av.open(tmp_path / "cut.mp4") as part:
        assert sum(1 for _ in part.decode(video=0)) > 0
    with page.expect_download() as export:
        page.get_by_role("button", name="Export JSON").click()
    assert export.value.suggested_filename == "my trip-answers.json"
    export.value.save_as(tmp_path / "answers.json")
    document = json.loads((tmp_path / "answers.json").read_text())
    assert document["asked"]["query"] == QUERY
    assert [one["versions"]["weights"] for one in document["answers"]] == [STEPS, STEPS]
    assert document["answers"][0]["spans"][0] == [[2.0, 9.5]]
    assert document["answers"][0]["max_tokens"] == 512
    best = document["answers"][0]["grounding"]["answers"][1]
    assert {"text", "logprob"} == set(best["tokens"][0])


def test_a_phone_and_a_keyboard_are_enough(place: Place, opened: Open) -> None:
    page = opened(place.page, narrow=True, scheme="dark")
    expect(page.get_by_text("1 video below")).to_be_visible()
    page.get_by_label("or one of the run's videos").focus()
    page.keyboard.type(f"train/{CLIP:05d}.mp4")
    page.keyboard.press("Enter")
    expect(page.get_by_label("When does it happen?")).to_be_focused()
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    expect(lanes(page)).to_have_count(1)
    assert fits(page)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    for _ in range(40):
        page.keyboard.press("Tab")
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        if label == "Loop 1":
            break
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Loop 1")).to_have_attribute("aria-pressed", "true")
    until(page, "document.querySelector('video').currentTime > 2")
    page.keyboard.press("Space")
    page.reload()
    expect(page.get_by_label("When does it happen?")).to_have_value(QUERY)
    page.get_by_role("button", name="Think").focus()
    page.keyboard.press("Space")
    expect(page).to_have_url(re.compile("mode=think"))


def test_an_address_opens_a_video_and_the_question_about_it(place: Place, opened: Open) -> None:
    """As a group's page links to it, with the path that its row has."""
    page = opened(f"{place.page}&video={place.video}&query={QUERY}&mode=think")
    expect(page.locator(".stage .meta")).to_contain_text("64 x 64")
    expect(page.get_by_label("When does it happen?")).to_have_value(QUERY)
    expect(page.get_by_role("button", name="Think")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")
    expect(lanes(page)).to_have_count(1)
    page.get_by_role("button", name="Another video").click()
    expect(page).not_to_have_url(re.compile("video="))
    page.get_by_label("or one of the run's videos").fill(f"train/{CLIP:05d}.mp4")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"video=train%2F{CLIP:05d}.mp4"))
    page.reload()
    expect(page.locator(".stage .meta")).to_contain_text("64 x 64")


def test_a_video_of_an_address_that_is_not_there_is_said(place: Place, loud: Page) -> None:
    loud.goto(f"{place.page}&video=/etc/passwd")
    expect(loud.get_by_role("alert").first).to_contain_text("/etc/passwd")
    expect(loud.get_by_text("Drop a video here")).to_be_visible()


@pytest.mark.parametrize(("scheme", "narrow"), [("light", False), ("dark", True)])
def test_axe_finds_nothing_in_any_state(
    place: Place, opened: Open, scheme: str, narrow: bool
) -> None:
    page = opened(place.page, scheme=scheme, narrow=narrow)
    expect(page.get_by_text("1 video below")).to_be_visible()
    clean(page)
    give(page, place.video)
    page.get_by_label("Beside it").select_option("replica-2")
    ask(page)
    expect(page.locator(".model")).to_have_count(2)
    page.locator("summary").last.click()
    clean(page)
    ask(page, "refuse this")
    expect(page.get_by_role("alert").filter(has_text="9000 prompt tokens")).to_have_count(2)
    clean(page)


def clean(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert fits(page)


def test_what_goes_wrong_is_said_where_it_went_wrong(place: Place, loud: Page) -> None:
    page, wrong, huge = loud, place.folder / "notes.mp4", place.folder / "huge.mp4"
    wrong.write_text("these are notes")
    huge.write_bytes(bytes(3_100_000))
    page.goto(place.page)
    page.locator("#file").set_input_files(wrong)
    problem = page.locator(".stage .problem")
    expect(problem).to_contain_text("notes.mp4: ")
    page.locator("#file").set_input_files(huge)
    expect(problem).to_have_text("video: found 4 MB, wanted at most 3 MB: --max-upload-mb")
    page.get_by_label("or one of the run's videos").fill("../../elsewhere.mp4")
    page.get_by_role("button", name="Open").click()
    expect(problem).to_contain_text("No such file")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    give(page, place.video)
    ask(page, " ")
    expect(page.locator("#problem")).to_have_text("query: found no words, wanted what to look for")
    expect(page.get_by_label("When does it happen?")).to_be_focused()
    expect(page.get_by_label("When does it happen?")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Samples").fill("0")
    ask(page)
    expect(page.locator("#problem")).to_have_text("samples: found 0, wanted 1 to 256")
    page.get_by_label("Samples").fill("1")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("From, s").fill("-1")
    page.get_by_text("More", exact=True).click()
    ask(page)
    expect(page.locator("#problem")).to_have_text("from: found -1 s, wanted 0 or more")
    expect(page.get_by_label("From, s")).to_be_focused()
    page.get_by_label("From, s").fill("")
    ask(page, "mumble")
    expect(page.locator(".model .lead")).to_have_text("No answer could be read as a span.")
    page.locator("details.answer summary").click()
    expect(page.locator("details[open] .tokens")).to_have_text("no idea when <b>that</b> was")
    ask(page, "refuse this")
    expect(page.locator(".model .fault")).to_contain_text(REFUSAL)
    expect(page.locator(".model .fault")).to_contain_text("Ask about a part of it")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".model .fault")).to_contain_text(REFUSAL)


def test_a_question_is_cancelled_and_asked_again(place: Place, opened: Open) -> None:
    page = opened(place.page)
    give(page, place.video)
    place.first.delay_s = 2.0
    try:
        ask(page)
        expect(page.locator(".wait")).to_contain_text("asking")
        expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".asking")).to_contain_text("Cancelled")
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_focused()
    finally:
        place.first.delay_s = 0.0
    page.keyboard.press("Enter")
    expect(lanes(page)).to_have_count(1)
    page.get_by_role("button", name="Another video").click()
    expect(page.get_by_text("Drop a video here")).to_be_visible()
    expect(lanes(page)).to_have_count(0)


def test_a_model_that_loads_says_what_it_is_at_and_one_that_died_shows_its_log(
    place: Place, opened: Open
) -> None:
    page = opened(place.page)
    events = [
        ("waits", {"model": "replica-1", "says": "loading: Starting to load model tiny"}),
        ("failed", {"model": "replica-1", "says": "replica was killed by SIGKILL\nits last words"}),
    ]
    for number in (1, 2):
        body = "".join(f"event: {n}\ndata: {json.dumps(c)}\n\n" for n, c in events[:number])
        answer = partial(Route.fulfill, body=body, content_type="text/event-stream")
        page.route("**/api/playground/ask*", lambda route: answer(route))  # noqa: B023 - the last
        if number == 1:
            give(page, place.video)
        ask(page)
        if number == 1:
            expect(page.locator("#problem")).to_contain_text("Is tempsamp dash still running?")
    expect(page.locator(".model .fault p")).to_have_text("replica was killed by SIGKILL")
    page.get_by_text("Its log").click()
    expect(page.locator(".fault pre")).to_have_text("its last words")


def test_without_a_model_it_says_how_to_have_one(place: Place, opened: Open) -> None:
    page = opened("about:blank")
    offer = {"models": [], "most_upload_mb": 3, "most_samples": 256, "roots": [], "silent": None}
    page.route("**/api/playground?*", lambda route: route.fulfill(json=offer))
    page.route("**/api/runs*", lambda route: route.fulfill(json=[]))
    page.goto(f"{place.url}/#/playground")
    nobody = page.get_by_role("region", name="Nobody to ask")
    expect(nobody).to_contain_text("tempsamp dash RUN --model FOLDER")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    clean(page)
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("main")).to_contain_text("No run here yet")
    page.get_by_role("link", name="Evaluations in this folder").click()
    expect(page.locator("main")).to_contain_text("No evaluation yet")
    page.go_back()
    page.get_by_role("link", name="Ask a model about a video").click()
    expect(nobody).to_be_visible()
