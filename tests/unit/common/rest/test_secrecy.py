"""The search for secrets finds what it looks for."""

import base64
import os
from pathlib import Path

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


def test_a_command_line_is_read() -> None:
    assert shown_by(os.getpid(), {"PYTHON": "python"}) != []
    assert shown_by(os.getpid(), SECRETS) == []
