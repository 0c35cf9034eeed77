"""Examples for the reward service in README.md and docs are run at a live server, as written."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from common.rest.reward_api import ScoreItem, ScoreRequest, Shaping
from tests.fixtures.pages.documents import example
from tests.fixtures.servers.reward_server import RewardServer, reward_server

ROOT = Path(__file__).parents[3]
ADDRESS = "http://127.0.0.1:8100"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n```json\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def examples(language: str) -> list[Any]:
    """Code that calls the service, and the JSON block right below it, if there is one."""
    found = []
    for path in (ROOT / "README.md", ROOT / "docs/reward-api.md", ROOT / "docs/rewards.md"):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for block in BLOCK.finditer(text):
            if block[1] == language and ADDRESS in block[2]:
                name = f"{path.name}-{text[: block.start()].count(chr(10)) + 1}"
                found.append(pytest.param(block[2], block[3], id=name))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    """Started as the manual says, but for the port."""
    (command,) = example("reward-serve").commands
    assert command[:3] == ["tempsamp", "reward", "serve"]
    options = [word if word != urlsplit(ADDRESS).netloc.split(":")[1] else "0" for word in command]
    with reward_server(*options[3:]) as server:
        yield server


@pytest.mark.parametrize(("code", "answer"), examples("bash"))
def test_curl_example_answers_what_the_page_says(
    server: RewardServer, code: str, answer: str | None
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code.replace(ADDRESS, server.url)],
        env={"PATH": "/usr/bin:/bin", "TEMPSAMP_TOKEN": "sesame"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    if answer is not None:
        assert json.loads(ended.stdout) == json.loads(answer)


@pytest.mark.parametrize(("code", "answer"), examples("python"))
def test_python_example_runs(server: RewardServer, code: str, answer: str | None) -> None:
    assert answer is None
    exec(compile(code.replace(ADDRESS, server.url), "example", "exec"), {})


def test_the_page_has_examples_with_answers() -> None:
    assert sum(example.values[1] is not None for example in examples("bash")) >= 8
    assert examples("python")


def test_every_field_of_the_contract_is_on_the_page() -> None:
    page = (ROOT / "docs/reward-api.md").read_text(encoding="utf-8")
    for model in (ScoreItem, ScoreRequest, Shaping):
        for field in model.model_fields:
            assert field in page
