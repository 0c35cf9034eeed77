"""What a command says when it ends by itself, and with which exit code."""

import errno
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import tempsamp
from common.errors import AccessError, ConfigError, QueueError, last_words
from jobs.audit import command as audit

ROOT = Path(__file__).resolve().parents[3]


def of_the_system(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ConfigError("--out: found x"), "--out: found x", 2),
        (AccessError("wrong password"), "wrong password", 2),
        (QueueError("no answer"), "QueueError: no answer", 1),
        (ExceptionGroup("tasks", [QueueError("no answer")]), "QueueError: no answer", 1),
        (of_the_system(errno.ENOENT, "a"), "a: No such file or directory", 2),
        (of_the_system(errno.ENOTDIR, "a"), "a: Not a directory", 2),
        (of_the_system(errno.EISDIR, "a"), "a: Is a directory", 2),
        (of_the_system(errno.EACCES, "a"), "a: Permission denied", 2),
        (of_the_system(errno.EADDRINUSE), "Address already in use", 2),
        (of_the_system(errno.ENOSPC, "a"), "a: No space left on device", 1),
        (of_the_system(errno.EIO, "a"), "a: Input/output error", 1),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "a host name or an address: Name or service not known",
            2,
        ),
        (
            httpx.ReadTimeout("slow\nserver"),
            "ReadTimeout: slow server (tempsamp --debug ... shows where)",
            1,
        ),
        (KeyError("x"), "KeyError: 'x' (tempsamp --debug ... shows where)", 1),
    ],
)
def test_whatever_ends_a_command_is_one_line(error: Exception, line: str, code: int) -> None:
    assert last_words(error) == (f"tempsamp: {line}\n", code)


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a command line in this process."""
    monkeypatch.setattr(sys, "argv", ["tempsamp", *words])
    with pytest.raises(SystemExit) as end:
        tempsamp.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tempsamp audit` has a fault of its own."""

    def command() -> None:
        raise KeyError("x")

    monkeypatch.setattr(audit, "command", command)


@pytest.mark.usefixtures("broken")
def test_a_traceback_is_shown_with_debug_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "audit") == 1
    assert capsys.readouterr().err.splitlines() == [
        "tempsamp: KeyError: 'x' (tempsamp --debug ... shows where)"
    ]
    assert ended(monkeypatch, "--debug", "audit") == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("tempsamp: KeyError: 'x' (tempsamp --debug ... shows where)\n")


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(errno.EPIPE, "pipe"), 1)]
)
def test_signals_and_closed_pipes_end_a_command_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(audit, "command", command)
    for stream in ("stdout", "stderr"):  # typer puts its own in place
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    assert ended(monkeypatch, "audit") == code
    assert capsys.readouterr().err == ""


def test_a_command_that_ends_well_ends_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "command", lambda: None)
    assert ended(monkeypatch, "audit") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit", "--al", "x"], "No such option: --al"),
        (["audit"], "Missing argument 'run_dir'"),
        (["eval", "scor"], "No such command 'scor'. Did you mean 'score'?"),
        (["evall"], "No such command 'evall'. Did you mean 'eval'?"),
        (["data", "inspect", "/nowhere"], "file '/nowhere' does not exist"),
        (["eval", "--mode", "thinking"], "'thinking' is not one of"),
        (["reward", "serve", "extra"], "unexpected extra argument"),
        (["reward", "serve", "--port", "http"], "Invalid value for '--port'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_one_line_that_names_the_help(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    assert ended(monkeypatch, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "--help` lists what it takes" in line


def test_a_group_without_a_command_shows_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "data") == 2
    shown = capsys.readouterr()
    assert "convert" in shown.out + shown.err
    assert "tempsamp:" not in shown.out + shown.err


def test_a_process_ends_with_that_code_and_that_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tempsamp", "audit", "/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tempsamp: /nowhere")


class Terminal(io.StringIO):
    """Standard error of somebody who watches."""

    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(("no_color", "colour"), [("", True), ("1", False)])
def test_errors_have_a_colour_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, no_color: str, colour: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stderr", watched := Terminal())
    assert ended(monkeypatch, "audit") == 1
    assert ("\x1b[31m" in watched.getvalue()) == colour
    assert "tempsamp: KeyError: 'x'" in watched.getvalue()
