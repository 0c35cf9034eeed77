"""Errors in the words of several servers → one line with the knob."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from jobs.asking.openai.problems import problem_of
from jobs.asking.refusals import MAX_RETRY_AFTER_S, Refused, retry_after_s

REQUEST = httpx.Request("POST", "http://a/v1/chat/completions?x=hush")


def said(status: int, body: Any) -> str:
    """What is told of an answer."""
    error = problem_of(httpx.Response(status, json=body, request=REQUEST)).error()
    assert "\n" not in str(error)
    assert "hush" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    ("message", "knob"),
    [
        ("This model's maximum context length is 8192 tokens. However,", "shared.video"),
        (
            "The decoder prompt (length 9000) is longer than the maximum model length",
            "shared.video",
        ),
        ("prompt is too long: 210000 tokens > 200000 maximum", "--max-tokens"),
        ("max_tokens=2000 cannot be greater than max_model_len=1024.", "--max-tokens"),
        ("Too many images in request. Maximum is 50.", "shared.video.max_frames"),
        ("At most 16 image(s) may be provided in one prompt.", "shared.video.max_frames"),
        ("Invalid value: 'video_url'. Supported values are: 'text'", "--frames-as images"),
        ("m is not a multimodal model, video is not supported", "--frames-as images"),
        ("frames_indices must be a list of integers", "--frames-as video"),
        ("Per-request media_io_kwargs are disabled by default", "--trust-request-mm-kwargs"),
        ("something else", ""),
    ],
)
def test_the_knob_is_named(message: str, knob: str) -> None:
    line = said(400, {"error": {"message": message, "type": "BadRequestError", "param": None}})
    assert line.startswith("http://a/v1/chat/completions: found status 400: " + message[:40])
    assert knob in line
    if not knob:
        assert line.endswith(message)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no way", "code": 400}},
        {"object": "error", "message": "no way"},
        {"detail": "no way"},
        {"error": "no way"},
        [{"error": {"message": "no way"}}],
    ],
)
def test_errors_of_other_forms_are_read(body: Any) -> None:
    assert said(400, body).endswith("found status 400: no way")


def test_a_page_of_a_proxy_is_one_short_line() -> None:
    page = httpx.Response(400, text="<html>\n" + "word " * 400, request=REQUEST)
    line = str(problem_of(page).error())
    assert len(line) < 400
    assert line.endswith("\u2026")


def test_what_is_too_large_names_what_makes_it_so() -> None:
    assert "shared.video.total_pixels" in said(413, {"detail": "Request Entity Too Large"})


@pytest.mark.parametrize(
    ("param", "message", "field", "names"),
    [
        ("logprobs", "no", "logprobs", True),
        ("messages.0", "no", "messages", True),
        (None, "loc: ('body', 'seed')", "seed", True),
        (None, "we seeded it", "seed", False),
        (None, "use 'max_completion_tokens'", "max_tokens", False),
        (None, "top_logprobs is not allowed", "logprobs", False),
    ],
)
def test_a_field_is_named_as_a_word(
    param: str | None, message: str, field: str, names: bool
) -> None:
    body = {"error": {"message": message, "param": param}}
    found = problem_of(httpx.Response(422, json=body, request=REQUEST))
    assert found.names(field) is names
    assert isinstance(found.error(), Refused)
    assert not problem_of(httpx.Response(500, json=body, request=REQUEST)).names(field)


def test_who_asks_for_patience_gets_it_within_bounds() -> None:
    assert retry_after_s("7") == 7.0
    assert retry_after_s("86400") == MAX_RETRY_AFTER_S
    assert retry_after_s("-3") == 0.0
    assert retry_after_s(None) == retry_after_s("soon") == 1.0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 15 < retry_after_s(soon) <= 20
    assert retry_after_s("nan") == 1.0
