"""Secrets from variables and files, and what is refused without showing them."""

import os
import re
from pathlib import Path

import pytest

from common import config
from common.errors import ConfigError
from common.secrets import MOST_BYTES, OPENAI_KEY, VARIABLES, Tokens, only, secret, tokens

NAME = "TEMPSAMP_TOKEN"


def file(folder: Path, content: bytes = b"sesame\n", *, mode: int = 0o600) -> dict[str, str]:
    """An environment that names a file of a secret."""
    path = folder / "token"
    path.write_bytes(content)
    path.chmod(mode)
    return {f"{NAME}_FILE": str(path)}


def value(environ: dict[str, str]) -> str | None:
    found = secret(NAME, environ)
    return None if found is None else found.get_secret_value()


def test_a_secret_is_the_variable_s_or_the_file_s(tmp_path: Path) -> None:
    assert value({}) is None
    assert value({NAME: ""}) is None
    assert value({NAME: "", f"{NAME}_FILE": ""}) is None
    assert value({NAME: "sésame"}) == "sésame"
    assert value(file(tmp_path)) == "sesame"
    assert value({NAME: "", **file(tmp_path, b"sesame\r\n")}) == "sesame"


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_a_file_may_be_its_owner_s_and_its_group_s(tmp_path: Path, mode: int) -> None:
    assert value(file(tmp_path, mode=mode)) == "sesame"


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o660, 0o620, 0o601])
def test_a_file_that_is_open_to_others_is_refused_with_the_way_out(
    tmp_path: Path, mode: int
) -> None:
    words = rf"{NAME}_FILE: found .*token with mode {mode:o}, .*: chmod 600 .*token"
    with pytest.raises(ConfigError, match=words):
        value(file(tmp_path, mode=mode))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "found 0 bytes"),
        (b"\n", "found 0 bytes"),
        (b"hidden\nhidden\n", "several lines"),
        (b"hidden \n", "spaces"),
        (b"hid\x00den", "control characters"),
        (b"hid\xffden", "UTF-8"),
        (b"h" * (MOST_BYTES + 1), f"1 to {MOST_BYTES}"),
    ],
)
def test_what_is_no_secret_is_refused_and_not_shown(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        value(file(tmp_path, content))
    assert "hid" not in str(refused.value)


def test_a_header_cannot_be_smuggled_in_by_a_variable() -> None:
    with pytest.raises(ConfigError, match=f"{NAME}: found .*several lines"):
        value({NAME: "a\r\nX-Other: b"})


def test_both_or_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{NAME}, {NAME}_FILE: found both"):
        value({NAME: "a", **file(tmp_path)})
    with pytest.raises(ConfigError, match=f"{NAME}_FILE: .*none: No such file"):
        value({f"{NAME}_FILE": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=f"{NAME}_FILE: .*: Is a directory"):
        value({f"{NAME}_FILE": str(tmp_path)})


def test_every_secret_of_a_run_may_be_a_file(tmp_path: Path) -> None:
    environ = {}
    for name in VARIABLES:
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(f"of-{name}\n")
        environ[f"{name}_FILE"] = str(tmp_path / name)
    run = config.parse(
        {
            "shared": {"run_id": "a", "model": "m"},
            "learner": {"rows": "r", "run_dir": "d", "steps": 1},
        },
        environ=environ,
    )
    found = {getattr(run.shared, field).get_secret_value() for field in config.SECRETS}
    assert found == {f"of-{name}" for name in VARIABLES}


def test_the_least_token_is_shown_where_any_will_do() -> None:
    known = tokens({"TEMPSAMP_CONTROL_TOKEN": "c", "TEMPSAMP_GENERATE_TOKEN": "g"})
    shown = known.any()
    assert shown is not None
    assert shown.get_secret_value() == "g"
    assert len(known.known()) == 2
    assert Tokens().any() is None


def test_a_child_knows_one_token_whatever_its_parent_knows(tmp_path: Path) -> None:
    parent = {"TEMPSAMP_GENERATE_TOKEN": "other", **file(tmp_path)}
    known = tokens({**parent, **only(token="mine")})
    for role in ("control", "generate", "score"):
        found = known.of(role)
        assert found is not None
        assert found.get_secret_value() == "mine"
    assert only(token="mine")[OPENAI_KEY] == only(token="mine")[f"{OPENAI_KEY}_FILE"] == ""


def test_nobody_else_reads_the_variables() -> None:
    root = Path(__file__).resolve().parents[3]
    reads = re.compile(r"(environ|getenv).{0,40}TEMPSAMP_\w*(TOKEN|PASSWORD|KEY)")
    files = [
        path for house in ("common", "services", "jobs") for path in (root / house).rglob("*.py")
    ]
    assert [str(path) for path in files if reads.search(path.read_text())] == []
    assert os.environ.get("TEMPSAMP_TOKEN") is None, "these tests run without"
