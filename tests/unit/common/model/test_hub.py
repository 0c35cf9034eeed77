"""Ids of a hub: fetched once, from the cache afterwards, and every refusal in one line.

huggingface_hub reads its environment at import, so each model is fetched by a process of its own.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.servers import hub as hubs
from tests.fixtures.servers.hub import Hub

ROOT = Path(__file__).resolve().parents[4]
TINY = hubs.files_of(ROOT / "deploy/tiny-qwen3vl")
NOT_NEEDED = {
    "README.md": b"# Tiny",
    ".gitattributes": b"",
    "pytorch_model.bin": b"the same again",
    "onnx/config.json": b"{}",
    "onnx/model.safetensors": b"",
    "model-q4.gguf": b"",
}
PROGRAM = """
import dataclasses, json, sys
from common.errors import ConfigError
from common.model.folder import fetched
said = []
try:
    found = dataclasses.asdict(fetched(sys.argv[1], knob="--model", say=said.append))
    error = None
except ConfigError as refused:
    found, error = None, str(refused)
print(json.dumps({"found": found, "error": error, "said": said}, default=str))
"""
IS_REFUSED_AFTER_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """What became of a model."""

    folder: Path | None
    name: str | None
    commit: str | None
    error: str
    said: list[str]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hubs.serving() as running:
        yield running


def started(model: str, environ: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, model],
        cwd=ROOT,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> Outcome:
    output, _ = process.communicate(timeout=60)
    told = json.loads(output)
    found = told["found"] or {}
    folder = Path(found["path"]) if found else None
    return Outcome(
        folder, found.get("name"), found.get("commit"), told["error"] or "", told["said"]
    )


def fetch(model: str, environ: dict[str, str]) -> Outcome:
    return ended(started(model, environ))


def fetched(model: str, environ: dict[str, str]) -> Outcome:
    outcome = fetch(model, environ)
    assert outcome.folder is not None, outcome.error
    return outcome


def refused(model: str, environ: dict[str, str]) -> str:
    """The one line that a user gets, soon enough."""
    before = time.monotonic()
    outcome = fetch(model, environ)
    assert time.monotonic() - before < IS_REFUSED_AFTER_S
    assert outcome.error.startswith("--model: found "), outcome
    assert ", wanted " in outcome.error
    assert "\n" not in outcome.error
    return outcome.error


def test_what_is_needed_is_fetched_once_and_said(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("tiny/qwen3vl", TINY | NOT_NEEDED)
    environ = hub.environ(tmp_path)
    first = fetched("tiny/qwen3vl", environ)
    assert first.folder is not None
    assert hubs.files_of(first.folder) == TINY
    assert {path.name for path in first.folder.iterdir()} == set(TINY)
    assert (first.name, first.commit) == ("tiny/qwen3vl", commit)
    size = f"{sum(map(len, TINY.values())) / 1e6:.1f} MB"
    assert first.said == [
        f"fetching tiny/qwen3vl@main: {len(TINY)} of its files, {size}, of commit {commit} from "
        f"{hub.url} into {tmp_path / 'hub' / 'models--tiny--qwen3vl'}",
        f"tiny/qwen3vl@main is commit {commit}, read from {first.folder}",
    ]
    second = fetched("tiny/qwen3vl", environ)
    assert second.folder == first.folder
    assert second.said == first.said[1:]
    assert hub.gets("model.safetensors") == hub.gets("config.json") == 1


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "ftp://x"])
def test_a_proxy_that_cannot_be_used_is_named(hub: Hub, tmp_path: Path, proxy: str) -> None:
    hub.add("tiny/qwen3vl", TINY)
    environ = hub.environ(tmp_path) | {"ALL_PROXY": proxy, "NO_PROXY": "", "no_proxy": ""}
    assert "ALL_PROXY" in refused("tiny/qwen3vl", environ)


def test_revisions_are_branches_tags_and_commits(hub: Hub, tmp_path: Path) -> None:
    old = hub.add("tiny/qwen3vl", TINY | {"recipe.json": b"{}"}, revision="v1.0")
    new = hub.add("tiny/qwen3vl", TINY)
    environ = hub.environ(tmp_path)
    assert fetched("tiny/qwen3vl@v1.0", environ).commit == old
    assert fetched("tiny/qwen3vl@main", environ).commit == new
    hub.requests.clear()
    pinned = fetched(f"tiny/qwen3vl@{old}", environ)
    assert (pinned.name, pinned.commit) == (f"tiny/qwen3vl@{old}", old)
    # A commit cannot change: what is cached of it needs no hub.
    assert hub.requests == []


def test_a_branch_that_moved_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/qwen3vl", TINY)
    environ = hub.environ(tmp_path)
    fetched("tiny/qwen3vl", environ)
    newer = hub.add("tiny/qwen3vl", TINY | {"recipe.json": b"{}"})
    assert fetched("tiny/qwen3vl", environ).commit == newer
    assert hub.gets("recipe.json") == 2
    assert hub.gets("model.safetensors") == 1


def test_two_processes_at_once_download_once(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/qwen3vl", TINY)
    hub.chunk_delay_s = 0.02
    environ = hub.environ(tmp_path)
    outcomes = [ended(one) for one in [started("tiny/qwen3vl", environ) for _ in range(2)]]
    assert outcomes[0].folder == outcomes[1].folder is not None
    assert hub.gets("model.safetensors") == 1


def test_a_folder_of_that_name_wins(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("deploy/tiny-qwen3vl", {})
    found = fetched("deploy/tiny-qwen3vl", hub.environ(tmp_path))
    assert found.folder == Path("deploy/tiny-qwen3vl")
    assert hub.requests == []


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_the_cache_is_used_and_nobody_asked(
    variable: str, hub: Hub, tmp_path: Path
) -> None:
    commit = hub.add("tiny/qwen3vl", TINY)
    fetched("tiny/qwen3vl", hub.environ(tmp_path))
    hub.requests.clear()
    offline = hub.environ(tmp_path, **{variable: "1"})
    assert fetched("tiny/qwen3vl", offline).commit == commit
    error = refused("tiny/qwen2.5vl@v1", offline)
    assert f"nothing of tiny/qwen2.5vl@v1 in the cache {tmp_path / 'hub'}" in error
    assert "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set" in error
    assert f"found no folder tiny/qwen2.5vl in {ROOT}" in error
    assert hub.requests == []


def test_offline_a_part_is_not_enough(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/qwen3vl", TINY)
    whole = fetched("tiny/qwen3vl", hub.environ(tmp_path))
    assert whole.folder is not None
    (whole.folder / "model.safetensors").unlink()
    error = refused("tiny/qwen3vl", hub.environ(tmp_path, HF_HUB_OFFLINE="1"))
    assert f"a part of tiny/qwen3vl@main in the cache {tmp_path / 'hub'}, wanted all" in error
    assert fetched("tiny/qwen3vl", hub.environ(tmp_path)).folder == whole.folder


@pytest.mark.parametrize(
    ("part", "status", "code", "said"),
    [
        ("/revision/", 401, "RepoNotFound", "no model tiny/qwen3vl on {hub} (401), wanted"),
        ("/revision/", 401, "GatedRepo", "tiny/qwen3vl gated on {hub} (401), wanted access"),
        ("/resolve/", 403, "GatedRepo", "tiny/qwen3vl gated on {hub} (403), wanted access"),
        ("/revision/", 403, "", "tiny/qwen3vl closed to us on {hub} (403), wanted access"),
        ("/revision/", 503, "", "{hub} answers 503 for tiny/qwen3vl@main, wanted the model"),
    ],
)
def test_a_hub_that_refuses_is_quoted(
    part: str, status: int, code: str, said: str, hub: Hub, tmp_path: Path
) -> None:
    hub.add("tiny/qwen3vl", TINY)
    hub.refusals[part] = (status, code)
    error = refused("tiny/qwen3vl", hub.environ(tmp_path))
    assert said.format(hub=hub.url) in error
    assert ("HF_TOKEN" in error) == (status in (401, 403))


def test_a_wrong_id_may_have_meant_a_folder_and_a_wrong_revision_not(
    hub: Hub, tmp_path: Path
) -> None:
    hub.add("tiny/qwen3vl", TINY)
    error = refused("deploy/tiny-qwen3v1", hub.environ(tmp_path))
    assert f"found no folder deploy/tiny-qwen3v1 in {ROOT}, and no model" in error
    assert f"deploy/tiny-qwen3v1 on {hub.url} (404), wanted a model folder, or an id" in error
    error = refused("tiny/qwen3vl@v9", hub.environ(tmp_path))
    assert f"found no revision v9 of tiny/qwen3vl on {hub.url}, wanted a branch" in error


def test_nobody_at_that_address_is_said(hub: Hub, tmp_path: Path) -> None:
    # Port 9 is reserved: nobody listens.
    nowhere = hub.environ(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    outcome = fetch("tiny/qwen3vl", nowhere)
    assert "http://127.0.0.1:9 (HF_ENDPOINT) cannot be reached" in outcome.error
    assert "Connection refused" in outcome.error
    assert [text.endswith("asking again") for text in outcome.said] == [True, True]


def test_silence_is_waited_for_so_long_and_no_longer(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/qwen3vl", TINY)
    hub.silences = ["/revision/"] * 3
    impatient = hub.environ(tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1")
    error = refused("tiny/qwen3vl", impatient)
    assert f"from {hub.url} in 1 s (HF_HUB_DOWNLOAD_TIMEOUT), wanted" in error
    # huggingface_hub lists files without any deadline of its own.
    hub.silences = ["/tree/"]
    assert fetched("tiny/qwen3vl", impatient).folder is not None


def test_what_is_cached_stands_in_for_a_hub_that_is_away(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("tiny/qwen3vl", TINY)
    fetched("tiny/qwen3vl", hub.environ(tmp_path))
    hub.refusals["/revision/"] = (503, "")
    outcome = fetched("tiny/qwen3vl", hub.environ(tmp_path))
    assert outcome.commit == commit
    assert outcome.said[0] == (
        f"no answer about tiny/qwen3vl@main from {hub.url} (503): going on with commit {commit} "
        "from the cache"
    )


def test_what_was_fetched_is_looked_at_like_a_folder(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    hub.add("tiny/old", {"config.json": b"{}", "pytorch_model.bin": b""})
    assert "found an adapter" in refused("tiny/lora", hub.environ(tmp_path))
    assert "found no *.safetensors" in refused("tiny/old", hub.environ(tmp_path))


def test_a_full_disk_is_said(hub: Hub, tmp_path: Path) -> None:
    """A tmpfs of 2 MB in a mount namespace of its own."""
    alone = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount")
    hub.add("tiny/qwen3vl", TINY)
    mounted = 'mount -t tmpfs -o size=2m none "$HF_HOME" && exec "$@"'
    output = subprocess.run(
        [*alone, "sh", "-c", mounted, "sh", sys.executable, "-c", PROGRAM, "tiny/qwen3vl"],
        cwd=ROOT,
        env=os.environ | hub.environ(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    error = json.loads(output)["error"]
    assert f"--model: found no space left in {tmp_path / 'hub'}, wanted 3.8 MB" in error
    assert "HF_HOME" in error


def test_ctrl_c_does_not_wait_for_the_file(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny/large", TINY | {"model.safetensors": bytes(60 * 2**20)})
    hub.chunk_delay_s = 0.01  # ten seconds for the whole file
    running = started("tiny/large", hub.environ(tmp_path))
    while not hub.gets("model.safetensors"):
        assert running.poll() is None
        time.sleep(0.02)
    before = time.monotonic()
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGINT
    assert time.monotonic() - before < 6
    assert not list(tmp_path.rglob("*.incomplete"))
