"""The search for secrets finds what it looks for."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.secrecy import leaks, shown_by

SECRETS = {"TEMPSAMP_TOKEN": "0123456789abcdef"}


def test_a_planted_secret_is_found_in_text_bytes_and_base64(tmp_path: Path) -> None:
    secret = SECRETS["TEMPSAMP_TOKEN"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "clean.log").write_text("nothing")
    (tmp_path / "deep/log.jsonl").write_text(f'{{"url": "redis://:{secret}@host"}}')
    (tmp_path / "dump.aof").write_bytes(b"\xff\x00" + secret.encode())
    (tmp_path / "own/token").write_text(secret)
    for phase in range(3):
        encoded = base64.b64encode(b"user:"[:phase] + secret.encode() + b"!")
        (tmp_path / f"basic-{phase}").write_bytes(encoded)
    found, count = leaks(tmp_path, SECRETS, beside=("own",))
    assert count == 6
    assert {line.removeprefix("TEMPSAMP_TOKEN in ") for line in found} == {
        *("basic-0", "basic-1", "basic-2"),
        *("deep/log.jsonl", "dump.aof"),
    }


@pytest.mark.parametrize("given", [[], [SECRETS["TEMPSAMP_TOKEN"]]], ids=["clean", "argument"])
def test_command_lines_of_a_process_are_read(given: list[str]) -> None:
    command = [sys.executable, "-c", "input()", *given]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert len(shown_by(process.pid, SECRETS)) == len(given)
        process.communicate(b"\n")
