"""A resumed run is the same run."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from common import config
from common.config import Run, reading
from common.errors import ConfigError
from services.learner.state.compatible import MAY_CHANGE, may_change, refuse_changes


def run_of(*overrides: str) -> Run:
    document: dict[str, Any] = {
        "shared": {"run_id": "a", "model": "m"},
        "learner": {"rows": "rows.jsonl", "run_dir": "run", "steps": 10},
    }
    for override in overrides:
        reading._apply(document, override)
    return config.parse(document, environ={"TEMPSAMP_TOKEN": "x"} if overrides else {})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step-000005/config.json"
    path.parent.mkdir()
    path.write_text(config.dump(run_of()))
    return path


def test_the_same_settings_go_on(saved: Path) -> None:
    refuse_changes(saved, run_of())


def test_what_decides_learning_is_refused_key_by_key(saved: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_changes(
            saved,
            run_of(
                "learner.optimizer.lr=1.0",
                'shared.strategy="none"',
                "learner.steps=20",
                "learner.loss.clip_low=0.1",
            ),
        )
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("learner.run_dir: found 3 setting(s) other than those that step-")
    assert lines[1:-1] == [
        "  shared.strategy: found 'none', wanted 'shaping'",
        "  learner.optimizer.lr: found 1.0, wanted 1e-06",
        "  learner.loss.clip_low: found 0.1, wanted 0.2",
    ]


@pytest.mark.parametrize(("was", "now"), [(0, 50), (50, 0), (50, 20)])
def test_a_setting_that_a_config_does_not_write_down_is_compared(
    tmp_path: Path, was: int, now: int
) -> None:
    path = tmp_path / "config.json"
    saved, found = (
        run_of('rollout.device="cuda"', f"shared.sampling.top_k={k}") for k in (was, now)
    )
    path.write_text(config.dump(saved))
    with pytest.raises(ConfigError, match=rf"shared\.sampling\.top_k: found {now}, wanted {was}\n"):
        refuse_changes(path, found)
    refuse_changes(path, saved)


def test_places_addresses_and_deadlines_may_change(saved: Path) -> None:
    changed = run_of(
        'shared.redis_url="redis://elsewhere:1/0"',
        'shared.video.cache="/cache"',
        'learner.rows="/moved/rows.jsonl"',
        'learner.host="node-2"',
        "learner.steps=20",
        "learner.checkpoint_every=1",
        "learner.publish_timeout_s=5",
        "learner.validation.every=1",
        "rollout.lease_s=5",
        "reward.workers=4",
    )
    refuse_changes(saved, changed)


def test_a_setting_the_checkpoint_s_version_did_not_have_was_at_its_default(saved: Path) -> None:
    document = json.loads(saved.read_text())
    del document["learner"]["loss"]["kl_coef"]
    document["learner"]["loss"]["gone_since"] = 1
    saved.write_text(json.dumps(document))
    refuse_changes(saved, run_of())
    with pytest.raises(ConfigError, match=r"kl_coef: found 0\.1, wanted 0\.0"):
        refuse_changes(saved, run_of("learner.loss.kl_coef=0.1"))


PHASES = 'learner.phases=[{steps=5, max_tokens=64}, {mode="think"}]'


def test_phases_are_compared_key_by_key(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner\.phases: found '2 table\(s\)', wanted \[\]"):
        refuse_changes(saved, run_of(PHASES))
    saved.write_text(config.dump(run_of(PHASES)))
    refuse_changes(saved, run_of(PHASES))
    with pytest.raises(ConfigError) as refused:
        refuse_changes(saved, run_of(PHASES.replace("64", "32")))
    assert "\n  learner.phases.0.max_tokens: found 32, wanted 64\n" in str(refused.value)
    with pytest.raises(ConfigError, match=r"learner\.phases: found \[\], wanted '2 table\(s\)'"):
        refuse_changes(saved, run_of())


def test_a_setting_that_phases_did_not_have_was_at_its_default(saved: Path) -> None:
    document = json.loads(config.dump(run_of(PHASES)))
    for phase in document["learner"]["phases"]:
        del phase["max_tokens"]
    saved.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as refused:
        refuse_changes(saved, run_of(PHASES))
    assert str(refused.value).splitlines()[1:-1] == [
        "  learner.phases.0.max_tokens: found 64, wanted None"
    ]
    refuse_changes(saved, run_of(PHASES.replace(", max_tokens=64", "")))


def test_adapters_stay_what_they_are(saved: Path) -> None:
    lines = r"learner\.lora\.rank: found 16, wanted None\n.*alpha.*\n.*dropout.*\n.*target_modules"
    with pytest.raises(ConfigError, match=lines):
        refuse_changes(saved, run_of("learner.lora.rank=16"))
    saved.write_text(config.dump(run_of("learner.lora.rank=16")))
    refuse_changes(saved, run_of("learner.lora.rank=16"))
    with pytest.raises(ConfigError) as refused:
        refuse_changes(saved, run_of("learner.lora.rank=8", "learner.lora.alpha=8"))
    assert str(refused.value).splitlines()[1:-1] == [
        "  learner.lora.rank: found 8, wanted 16",
        "  learner.lora.alpha: found 8.0, wanted 32.0",
    ]
    with pytest.raises(ConfigError, match=r"learner\.lora\.rank: found None, wanted 16"):
        refuse_changes(saved, run_of('learner.lora="none"'))


def fields(model: type[BaseModel], prefix: str = "") -> set[str]:
    names = set()
    for name, field in model.model_fields.items():
        names.add(f"{prefix}{name}")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names |= fields(inner, f"{prefix}{name}.")
    return names


def test_the_list_names_settings_that_there_are() -> None:
    assert set(MAY_CHANGE) <= fields(Run)
    assert not may_change("learner.stepsize")
    assert not may_change("learner.optimizer.lr")
