"""What a replica sets for vLLM before it imports it."""

import os
import warnings

import pytest

from common.config import Rollout
from services.rollout.engine import _prepare_environment

SAMPLER = "VLLM_USE_FLASHINFER_SAMPLER"


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process's, empty."""
    empty: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", empty)
    return empty


def test_no_kernel_is_compiled_by_an_nvcc_that_may_be_missing(environ: dict[str, str]) -> None:
    _prepare_environment(Rollout(device="cuda"))
    assert environ[SAMPLER] == "0"


def test_what_is_set_outside_wins(environ: dict[str, str]) -> None:
    environ[SAMPLER] = "1"
    _prepare_environment(Rollout(device="cuda"))
    assert environ[SAMPLER] == "1"


def test_vllm_still_calls_it_so() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        from vllm.envs import environment_variables
    assert SAMPLER in environment_variables
