"""Keys of [learner] about memory: old names, shorthand, and what a GPU is not asked to do."""

from typing import Any

import pytest

from common import config
from common.config import Learner, Shared
from common.errors import ConfigError
from common.model.architecture import PUBLISHED
from common.model.memory import Card, fewest_recomputed, tokens_that_fit

QWEN3_VL = PUBLISHED["Qwen/Qwen3-VL-4B-Instruct"]
SHARED = Shared(run_id="r", model="m", dtype="bfloat16")


def parsed(shared: dict[str, Any] | None = None, **learner: object) -> config.Run:
    document = {
        "shared": {"run_id": "r", "model": "m", **(shared or {})},
        "learner": {"rows": "r", "run_dir": "d", "steps": 1, **learner},
    }
    return config.parse(document, environ={})


def learner(**settings: object) -> Learner:
    return parsed(**settings).learner


def test_the_old_name_is_answered_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"micro_batch_groups: found 4.*max_tokens_per_rank"):
        parsed(micro_batch_groups=4)


@pytest.mark.parametrize(("said", "kept"), [(True, "on"), (False, "off"), (3, 3), ("auto", "auto")])
def test_recomputation_has_names_numbers_and_what_older_files_say(
    said: object, kept: object
) -> None:
    assert learner(gradient_checkpointing=said).gradient_checkpointing == kept


def test_float32_on_a_gpu_needs_a_word() -> None:
    with pytest.raises(ConfigError, match=r"found 'float32' while learner.device is 'cuda'"):
        parsed(device="cuda")
    assert parsed(device="cuda", allow_float32_on_cuda=True).learner.device == "cuda"
    assert parsed({"dtype": "bfloat16"}, device="cuda").learner.device == "cuda"


def room(gigabytes: float, *, recomputed: float = 1.0) -> int:
    return tokens_that_fit(
        SHARED,
        learner=learner(),
        architecture=QWEN3_VL,
        card=Card(gigabytes * 1e9, ranks=8),
        recomputed=recomputed,
    )


def test_a_larger_card_and_more_recomputation_fit_more_tokens() -> None:
    assert 16_000 < room(80) < room(96) < room(141)
    assert room(96) - room(80) == pytest.approx(room(112) - room(96), abs=2)
    assert room(80, recomputed=0.0) < room(80, recomputed=0.5) < room(80) / 2
    assert room(10) < 1


def recomputed(gigabytes: float, **settings: object) -> float:
    return fewest_recomputed(
        SHARED,
        learner=learner(**settings),
        architecture=QWEN3_VL,
        card=Card(gigabytes * 1e9, ranks=8),
    )


def test_auto_recomputes_as_few_layers_as_make_what_is_wanted_fit() -> None:
    assert recomputed(80) == 1.0
    assert recomputed(400) == 0.0
    assert recomputed(80, max_tokens_per_rank=room(80, recomputed=0.25)) == 0.25
    assert recomputed(80, max_tokens_per_rank=room(80, recomputed=0.0)) == 0.0
    assert recomputed(400, gradient_checkpointing="on") == 1.0
    assert recomputed(80, gradient_checkpointing=2) == 0.5
