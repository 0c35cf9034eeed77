"""`make bench-gpu`'s learner part, tried on the CPU."""

import sys

import pytest
import torch

from services.learner.parallel import Ranks
from tests.bench.gpu_learner import __main__ as bench
from tests.bench.gpu_learner.shapes import REAL, TINY, Shape, group_of, model_flops


@pytest.mark.parametrize("shape", TINY, ids=lambda shape: shape.name)
def test_every_figure_is_found_for_a_tiny_shape(shape: Shape, ranks: Ranks) -> None:
    found = bench.measure(shape, ranks=ranks, repeats=1, compile_layers="auto")
    assert found["tokens"] == found["prompt_tokens"] + 3 * 6
    assert found["step"]["s"]["median"] > 0
    assert found["step"]["mfu"] is None
    assert set(found["backward"]) == {"every_1", "every_2", "none"}
    assert found["compiled_layers"] == 0
    gradients = found["gradients"]
    assert gradients["shared_again"] == gradients["alone_again"] == 0
    assert 0 < gradients["shared_alone"] < 0.05


def test_without_a_gpu_it_says_so_and_ends_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert bench.main() == 0
    assert "found no CUDA device, the learner is not measured" in capsys.readouterr().out


def test_an_unknown_shape_is_refused_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--tiny", "--shapes", "Qwen3.5-4B"])
    with pytest.raises(SystemExit):
        bench.main()
    said = capsys.readouterr().err
    assert "found ['Qwen3.5-4B'], wanted some of ['tiny Qwen3-VL', 'tiny Qwen3.5']" in said


def test_real_shapes_are_of_16k_tokens() -> None:
    for shape in REAL:
        group = group_of(shape)
        assert len(group.prompt_token_ids) == 16_002
        assert group.num_visual_tokens == 14_328


def test_model_flops_are_those_of_the_prototype() -> None:
    """683 TFLOP for 4B on paper; a layer has q, k, v, o, and three weights of the MLP."""
    shape = REAL[0]
    layer = 2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728
    found = model_flops(shape, linear_weights=36 * layer, prompt_tokens=16_002)
    assert found == pytest.approx(683e12, rel=0.01)
