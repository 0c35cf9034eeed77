"""Run files: what is refused, with which words, and where values come from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common import config
from common.config import Run
from common.config.truncation import returns_masks
from common.errors import ConfigError
from common.secrets import ROLES, VARIABLES

ROOT = Path(__file__).parents[3]
MINIMAL = """
[shared]
run_id = "demo"
model = "checkpoints/start"
[learner]
rows = "rows.jsonl"
run_dir = "runs/demo"
steps = 10
"""


def load(
    tmp_path: Path,
    text: str = MINIMAL,
    *overrides: str,
    environ: dict[str, str] | None = None,
) -> Run:
    file = tmp_path / "run.toml"
    file.write_text(text)
    return config.load(file, overrides=overrides, environ=environ or {})


@pytest.mark.parametrize(
    "file", sorted((ROOT / "deploy/configs").rglob("*.toml")), ids=lambda path: path.name
)
def test_every_shipped_run_file_loads(file: Path) -> None:
    assert config.load(file, environ={}).shared.run_id


def test_required_keys_are_enough(tmp_path: Path) -> None:
    run = load(tmp_path)
    assert (run.shared.run_id, run.learner.steps) == ("demo", 10)
    assert run.shared.redis_password is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("learner.group_per_step=4", r"learner\.group_per_step: .*mean 'groups_per_step'"),
            ("leaner.steps=4", r"leaner: unknown key; did you mean 'learner'"),
            ("learner.optimizer.learning_rate=1", r"unknown key; known: betas, lr, max_grad_norm"),
            ("shared.video.fpss=1", r"shared\.video\.fpss: unknown key; did you mean 'fps'"),
            ("shared.sampling.topp=1.0", r"shared\.sampling\.topp: .* mean 'top_p'"),
            ("learner.steps=0", r"learner\.steps: found 0: .*greater than or equal to 1"),
            ("learner.steps=many", r"learner\.steps: found 'many': .*integer"),
            ("learner.optimizer.lr=-1e-6", r"learner\.optimizer\.lr: found -1e-06"),
            ("learner.optimizer.lr=nan", r"learner\.optimizer\.lr: found nan"),
            ("learner.optimizer.betas=[0.9]", r"learner\.optimizer\.betas"),
            ("learner.optimizer.betas=[0.9, 1]", r"betas\.1: found 1: input should be less than 1"),
            ("learner.optimizer.betas=[-0.1, 0.9]", r"betas\.0: found -0\.1"),
            ("learner.groups_per_step=1" + 20 * "0", r"learner\.groups_per_step: found 1000"),
            (
                "learner.collective_timeout_s=1e10",
                r"found 10000000000\.0: .*to 1000000000",
            ),
            (
                "learner.collective_timeout_s=600",
                r"timeout_s: found 600, wanted more than learner\.wait_for_replicas_s, 600",
            ),
            ("shared.seed=4294967296", r"shared\.seed: found 4294967296"),
            ("shared.group_size=16385", r"shared\.group_size: found 16385"),
            ("shared.scoring.parser=json", r"scoring\.parser: found 'json', wanted one of default"),
            ("shared.scoring.alpha1=11", r"shared\.scoring\.alpha1: found 11"),
            ("shared.scoring.alpha2=21", r"shared\.scoring\.alpha2: found 21"),
            ("shared.scoring.format_weight=101", r"shared\.scoring\.format_weight: found 101"),
            (
                "shared.video.max_frames=2",
                r"video\.min_frames: found 4 while shared\.video\.max_frames is 2, wanted no more",
            ),
            ("shared.video.min_pixels=800000", r"video\.min_pixels: found 800000 while"),
            (
                "learner.shard_within=foo",
                r": learner\.shard_within: found 'foo': input should be 'all' or 'node', or input "
                r"should be a valid integer[^\n]*$",
            ),
            (
                "learner.shard_within=0",
                r": learner\.shard_within: found 0: input should be 'all' or 'node', or .* to 1$",
            ),
            ("shared.strategy=tempsamp", r"shared\.strategy: found 'tempsamp': .*'shaping'"),
            ("shared.run_id=a b", r"shared\.run_id: found 'a b'"),
            ("shared.run_id=a:b", r"shared\.run_id: found 'a:b'"),
            ("shared.group_size=1", r"shared\.group_size: found 1"),
            ("rollout.port=70000", r"rollout\.port: found 70000"),
            ("learner.lora.r=4", r"learner\.lora\.r: unknown key; known: alpha, dropout, rank"),
            ("learner.lora.rank=0", r"learner\.lora\.rank: found 0"),
            (
                "learner.lora.dropout=0.1",
                r"learner\.lora\.dropout: found 0\.1, wanted 0: the ratio",
            ),
            ("learner.lora.target_modules=[]", r"learner\.lora\.target_modules"),
            ('learner.modes=["answer", "think"]', r"learner\.modes: .*wanted \[\[learner\.phases"),
            ("learner.phases=[{steps=2}]", r"number 1: found an end in the last phase"),
            ("learner.phases=[{}, {}]", r"number 1: found no end, wanted steps, epochs or plateau"),
            ("learner.phases=[{plateau=2}, {}]", r"plateau, wanted learner\.validation\.rows"),
            ("learner.phases=[{max_tokens=257}]", r"at most shared\.sampling\.max_tokens, 256"),
            (
                'learner.phases=[{mode="think", strategy="sft", think_injection="none"}]',
                r"nothing would be trained on",
            ),
            ("learner.phases=[{step=2}, {}]", r"learner\.phases\.0\.step: unknown key"),
            (
                "learner.early_stop.patience=3",
                r"patience: found 3, wanted learner\.validation\.rows",
            ),
            (
                "learner.pool={drop_solved=0.2, drop_hopeless=0.3}",
                r"drop_hopeless: found 0\.3 while learner\.pool\.drop_solved is 0\.2, wanted less",
            ),
        ],
    )
    def test_wrong_key_or_value_is_named_with_what_is_wanted(
        self, tmp_path: Path, override: str, words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words):
            load(tmp_path, MINIMAL, override)

    def test_all_problems_are_told_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"(?s)3 problem.*fps.*colour.*steps"):
            load(
                tmp_path,
                MINIMAL,
                *("learner.steps=0", "shared.video.fps=0", "reward.colour=1"),
            )

    @pytest.mark.parametrize(
        "line", ['run_id = "demo"', 'rows = "rows.jsonl"', 'run_dir = "runs/demo"', "steps = 10"]
    )
    def test_missing_key_is_named(self, tmp_path: Path, line: str) -> None:
        key = line.split(" ", 1)[0]
        with pytest.raises(ConfigError, match=rf"\.{key}: missing, and it has no default"):
            load(tmp_path, MINIMAL.replace(line, ""))

    def test_missing_file_and_broken_toml_name_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
            config.load(tmp_path / "none.toml", environ={})
        with pytest.raises(ConfigError, match=r"run\.toml: not TOML: "):
            load(tmp_path, "[shared\n")

    @pytest.mark.parametrize("override", ["steps=4", "learner.steps", "=4"])
    def test_override_without_section_or_value_shows_the_form(
        self, tmp_path: Path, override: str
    ) -> None:
        with pytest.raises(ConfigError, match=r"wanted section\.key=value"):
            load(tmp_path, MINIMAL, override)

    def test_override_below_a_value_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="steps is a value, not a section"):
            load(tmp_path, MINIMAL, "learner.steps.x=1")


class TestSamplingAndImportance:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (
                ["sampling.top_p=0.85"],
                r"top_p: found 0\.85, wanted 1\.0 while learner\.loss\.correction is "
                r"'token_truncate' and rollout\.device 'cpu'.*CPU engine returns no mask",
            ),
            (["sampling.top_p=0.85", "sampling.top_k=50"], r"top_p: .*CPU engine returns no mask"),
            (
                ["sampling.top_k=50"],
                r"top_k: found 50, wanted 0 while .*CPU engine .*set shared\.sampling\.top_k = 0,",
            ),
        ],
    )
    def test_truncated_sampling_with_importance_weights_is_refused_on_a_cpu(
        self, tmp_path: Path, settings: list[str], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words):
            load(tmp_path, MINIMAL, *(f"shared.{setting}" for setting in settings))

    def test_on_a_gpu_it_needs_a_top_k_that_sizes_the_mask(self, tmp_path: Path) -> None:
        overrides = ("rollout.device=cuda", "shared.sampling.top_p=0.85")
        with pytest.raises(ConfigError, match=r"top_p: found 0\.85.*set shared\.sampling\.top_k"):
            load(tmp_path, MINIMAL, *overrides)
        run = load(tmp_path, MINIMAL, *overrides, "shared.sampling.top_k=50")
        assert returns_masks(run.shared.sampling, run.rollout)
        with pytest.raises(ConfigError, match=r"top_k: found 2049: .*less than or equal to 2048"):
            load(tmp_path, MINIMAL, *overrides, "shared.sampling.top_k=2049")

    def test_a_replica_outside_a_ring_samples_as_it_is_asked(self, tmp_path: Path) -> None:
        """`tempsamp eval` starts one with the run file of a training."""
        for device in ("cpu", "cuda"):
            truncated = ("shared.sampling.top_p=0.85", "shared.sampling.top_k=50")
            place = (f"rollout.device={device}", "rollout.weights=checkpoint")
            run = load(tmp_path, MINIMAL, *truncated, *place)
            assert not returns_masks(run.shared.sampling, run.rollout)

    def test_truncated_sampling_without_them_is_allowed(self, tmp_path: Path) -> None:
        overrides = ("shared.sampling.top_p=0.85", "learner.loss.correction=off")
        run = load(tmp_path, MINIMAL, *overrides)
        assert run.learner.loss.correction == "off"

    @pytest.mark.parametrize("turned", ["beta=3.0", 'shaped="sum"'])
    def test_settings_of_the_set_reward_want_it(self, tmp_path: Path, turned: str) -> None:
        with pytest.raises(ConfigError, match=r"no effect with shared\.scoring\.reward = 'iou'"):
            load(tmp_path, MINIMAL, f"shared.scoring.{turned}")
        chosen = 'shared.scoring.reward="iou+wasserstein"'
        load(tmp_path, MINIMAL, chosen, f"shared.scoring.{turned}")

    @pytest.mark.parametrize(
        "strategy",
        ['shared.strategy="anchor"', 'learner.phases=[{mode="answer", strategy="anchor"}]'],
    )
    def test_an_anchor_wants_two_policy_answers_or_a_floor(
        self, tmp_path: Path, strategy: str
    ) -> None:
        overrides = (strategy, "shared.group_size=2")
        with pytest.raises(ConfigError, match=r"shared\.group_size: found 2 with strategy anchor"):
            load(tmp_path, MINIMAL, *overrides)
        load(tmp_path, MINIMAL, *overrides, "learner.advantage.anchor_floor=0.5")
        load(tmp_path, MINIMAL, strategy)

    def test_temperature_other_than_one_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"temperature: found 0\.7, wanted 1\.0"):
            load(tmp_path, MINIMAL, "shared.sampling.temperature=0.7")


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "read"),
        [
            ("learner.steps=25", lambda run: run.learner.steps == 25),
            ("shared.strategy=none", lambda run: run.shared.strategy == "none"),
            ("learner.loss.dual_clip=none", lambda run: run.learner.loss.dual_clip is None),
            ("shared.model=a/b.c", lambda run: run.shared.model == "a/b.c"),
            ('learner.phases=[{mode="think"}]', lambda run: run.learner.phases[0].mode == "think"),
            ("learner.freeze_vision=false", lambda run: not run.learner.freeze_vision),
            ("learner.host=fd00::1", lambda run: run.learner.host == "fd00::1"),
            ("learner.host=[fd00::1]", lambda run: run.learner.host == "fd00::1"),
            ("rollout.advertise_host=[::1]", lambda run: run.rollout.advertise_host == "::1"),
        ],
    )
    def test_value_is_toml_or_a_bare_word(self, tmp_path: Path, override: str, read: Any) -> None:
        assert read(load(tmp_path, MINIMAL, override))

    def test_later_override_wins(self, tmp_path: Path) -> None:
        assert load(tmp_path, MINIMAL, "learner.steps=1", "learner.steps=2").learner.steps == 2


class TestSecrets:
    ENVIRON = {"TEMPSAMP_REDIS_PASSWORD": "hunter2", "TEMPSAMP_TOKEN": "opensesame"}  # noqa: RUF012

    def test_come_from_the_environment(self, tmp_path: Path) -> None:
        shared = load(tmp_path, environ=self.ENVIRON).shared
        assert shared.redis_password is not None
        assert shared.token is not None
        assert shared.redis_password.get_secret_value() == "hunter2"
        assert shared.token.get_secret_value() == "opensesame"

    def test_are_refused_in_the_file(self, tmp_path: Path) -> None:
        for field, variable in config.SECRETS.items():
            words = rf"shared\.{field}: secrets come from the environment \({variable}, "
            with pytest.raises(ConfigError, match=words) as refused:
                load(tmp_path, MINIMAL, f"shared.{field}=hunter2")
            assert "hunter2" not in str(refused.value)

    def test_roles_have_the_token_of_all_or_their_own(self, tmp_path: Path) -> None:
        environ = self.ENVIRON | {"TEMPSAMP_CONTROL_TOKEN": "abracadabra"}
        tokens = load(tmp_path, environ=environ).shared.tokens
        shown = {role: tokens.of(role) for role in ROLES}
        assert {role: token and token.get_secret_value() for role, token in shown.items()} == {
            "control": "abracadabra",
            "generate": "opensesame",
            "score": "opensesame",
        }

    def test_never_show_in_the_saved_config(self, tmp_path: Path) -> None:
        given = {name: f"secret-{number}" for number, name in enumerate(VARIABLES)}
        run = load(tmp_path, environ=given)
        text = config.dump(run) + repr(run) + repr(run.shared.tokens) + str(run.shared)
        assert not [value for value in given.values() if value in text]
        assert json.loads(config.dump(run))["shared"]["run_id"] == "demo"


class TestDerived:
    @pytest.mark.parametrize(
        ("strategy", "num_policy_samples"),
        [("none", 8), *((name, 7) for name in ("mixed", "downscale", "anchor", "shaping", "sft"))],
    )
    def test_injection_takes_one_place_of_the_group(
        self, tmp_path: Path, strategy: str, num_policy_samples: int
    ) -> None:
        run = load(tmp_path, MINIMAL, f"shared.strategy={strategy}")
        assert run.shared.num_policy_samples == num_policy_samples


def test_reading_a_run_file_imports_nothing_heavy() -> None:
    script = (
        "import sys, common.config\n"
        "heavy = {'torch', 'vllm', 'decord', 'redis', 'transformers', 'numpy', 'fastapi'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
