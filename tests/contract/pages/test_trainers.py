"""Reward functions of docs/integrations.md inside trainers that are really there.

TRL is the optional group `integrations` of pyproject.toml, and in no lock. ms-swift 4.6.0 and verl
0.9.1 are found when somebody has installed them.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.pages.test_integrations import (
    ADDRESS,
    CODE,
    HALF,
    NOTHING,
    PERFECT,
    SPANS,
    TEXTS,
    TOKEN,
    TRUTHS,
    scope_of,
)
from tests.fixtures.learner.tiny_models import tiny_tokenizer
from tests.fixtures.servers.reward_server import RewardServer, reward_server

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT = [{"role": "user", "content": "When does she sit down?"}]
COLUMNS = [{"prompt": PROMPT, "spans": truth, "duration": 60.0} for truth in SPANS]
REWARDS = [PERFECT, HALF, NOTHING]


@pytest.fixture(scope="module")
def server(scorer_packages_dir: Path) -> Iterator[RewardServer]:
    environ = {"TEMPSAMP_TOKEN": TOKEN, "PYTHONPATH": str(scorer_packages_dir)}
    with reward_server(environ=environ) as server:
        yield server


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPSAMP_TOKEN", TOKEN)


def grpo_trainer(folder: Path, reward: Any, **options: Any) -> Any:
    """TRL's trainer of a text model with 0.03 M random parameters."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=len(tokenizer), **sizes, **heads)
    return GRPOTrainer(
        model=Qwen2ForCausalLM(config),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=4,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            **options,
        ),
        train_dataset=datasets.Dataset.from_list(COLUMNS),
        processing_class=tokenizer,
    )


@pytest.fixture
def trl() -> None:
    pytest.importorskip("trl", reason="TRL is not installed: group integrations")


@pytest.mark.usefixtures("trl")
def test_trl_reads_our_rewards(server: RewardServer, tmp_path: Path) -> None:
    scope = scope_of("TRL", url=server.url)
    trainer = grpo_trainer(tmp_path, scope["tempsamp_reward"])
    completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
    ids = [[1] for _ in TEXTS]
    rewards = trainer._calculate_rewards(COLUMNS, [PROMPT] * 3, completions, ids)
    assert rewards[:, 0].tolist() == pytest.approx(REWARDS)
    scope["service"].close()


@pytest.mark.usefixtures("trl")
def test_trl_trains_a_step_with_them(server: RewardServer, tmp_path: Path) -> None:
    """Four noisy answers of a random model: all get shaped IoU 0."""
    scope = scope_of("TRL", url=server.url)
    trainer = grpo_trainer(tmp_path, scope["tempsamp_reward"])
    trainer.train()
    logged = next(line for line in trainer.state.log_history if "reward" in line)
    assert logged["rewards/tempsamp_reward/mean"] == pytest.approx(NOTHING)
    scope["service"].close()


@pytest.mark.usefixtures("trl")
def test_trl_leaves_out_what_is_unscored(server: RewardServer, tmp_path: Path) -> None:
    """It moves no mean and gets no advantage."""
    scope = scope_of("TRL", url=server.url, task='"misbehaves"')

    def reward(completions: list[Any], **columns: Any) -> list[Any]:
        answers = ["fine", "raise", "pid", "nan"]
        rewards: list[Any] = scope["tempsamp_reward"](completions=answers, **columns)
        return rewards

    trainer = grpo_trainer(tmp_path, reward)
    trainer.train()
    fine, raised, best, nan = trainer._logs["rewards"]["reward"]
    assert [fine, best] == pytest.approx([HALF - 0.1, PERFECT - 0.1])
    assert math.isnan(raised)
    assert math.isnan(nan)
    logged = next(line for line in trainer.state.log_history if "reward" in line)
    assert logged["reward"] == pytest.approx((fine + best) / 2)
    fine, raised, best, nan = trainer._logs["advantages"]
    assert fine == pytest.approx(-best)
    assert best > 0.5
    assert raised == nan == 0.0
    scope["service"].close()


@pytest.mark.usefixtures("trl")
def test_trl_stops_when_a_request_is_refused(server: RewardServer, tmp_path: Path) -> None:
    scope = scope_of("TRL", url=server.url, task='"juggling"')
    trainer = grpo_trainer(tmp_path, scope["tempsamp_reward"])
    with pytest.raises(RuntimeError, match="found 'juggling', wanted one of"):
        trainer.train()
    scope["service"].close()


def test_ms_swift_reads_our_rewards(server: RewardServer) -> None:
    pytest.importorskip("swift.rewards", reason="ms-swift is not installed")
    import torch
    from swift.rewards import orms
    from swift.rl_core.data import GRPOSample
    from swift.rl_core.grpo_algorithm import compute_rewards_per_func

    scope = scope_of("ms-swift", url=server.url)
    samples = [
        GRPOSample.from_row(
            {"messages": [*PROMPT, {"role": "assistant", "content": text}], "spans": truth}
        )
        for text, truth in zip(TEXTS, SPANS, strict=True)
    ]
    reward = orms["tempsamp"](args=None)
    rewards = compute_rewards_per_func(samples, [reward], [None], torch.device("cpu"))
    assert rewards[:, 0].tolist() == pytest.approx(REWARDS)
    scope["service"].close()


@pytest.fixture
def verl_batch() -> Any:
    """Three tokenised answers with the columns of verl's datasets."""
    pytest.importorskip("verl", reason="verl is not installed")
    import numpy as np
    import torch
    from verl import DataProto

    tokenizer = tiny_tokenizer()
    encoded = [tokenizer.encode(text) for text in TEXTS]
    length = max(map(len, encoded))
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    responses = torch.tensor([ids + [pad] * (length - len(ids)) for ids in encoded])
    masks = torch.tensor([[1] * (1 + len(ids)) + [0] * (length - len(ids)) for ids in encoded])
    truths = [{"ground_truth": truth, "style": "rule"} for truth in TRUTHS]
    return DataProto.from_dict(
        tensors={
            "prompts": torch.full((len(TEXTS), 1), pad),
            "responses": responses,
            "attention_mask": masks,
        },
        non_tensors={
            "data_source": np.array(["timelens"] * len(TEXTS), dtype=object),
            "reward_model": np.array(truths, dtype=object),
            "extra_info": np.array([{} for _ in TEXTS], dtype=object),
        },
    )


@contextlib.contextmanager
def verl_function(folder: Path, *, url: str, name: str) -> Iterator[Any]:
    """The page's function, loaded from a file as verl's configuration says."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    path = folder / "rewards.py"
    path.write_text(CODE["verl"].replace(ADDRESS, url), encoding="utf-8")
    custom = {"path": str(path), "name": name}
    function = get_custom_reward_fn(
        OmegaConf.create({"reward": {"custom_reward_function": custom}})
    )
    yield function
    function.args[0].__globals__["service"].close()


def test_verl_reads_our_rewards(server: RewardServer, tmp_path: Path, verl_batch: Any) -> None:
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    async def score(function: Any) -> list[dict[str, Any]]:
        manager = NaiveRewardManager(None, tiny_tokenizer(), function)
        answers = (manager.run_single(verl_batch[i : i + 1]) for i in range(len(TEXTS)))
        return await asyncio.gather(*answers)

    with verl_function(tmp_path, url=server.url, name="compute_score") as function:
        scored = asyncio.run(score(function))
    assert [one["reward_score"] for one in scored] == pytest.approx(REWARDS)
    assert scored[1]["reward_extra_info"]["iou"] == 0.5


def test_batch_manager_of_verl_reads_our_rewards(
    server: RewardServer, tmp_path: Path, verl_batch: Any
) -> None:
    """The trainer of verl 0.6 calls it; its class is still there in 0.9."""
    from verl.workers.reward_manager import BatchRewardManager

    with verl_function(tmp_path, url=server.url, name="compute_score_batch") as function:
        scored = BatchRewardManager(tiny_tokenizer(), 0, function)(verl_batch, return_dict=True)
    assert scored["reward_tensor"].sum(-1).tolist() == pytest.approx(REWARDS)
    assert scored["reward_extra_info"]["iou"] == [1.0, 0.5, 0.0]
