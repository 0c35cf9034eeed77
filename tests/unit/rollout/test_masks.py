"""Truncated sampling with its mask, against the classes of the vLLM that is installed."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common import config
from common.config import Rollout, Shared
from common.errors import EngineError
from common.messages import ClipRef, Sample, Sampling, Scored, ScoredGroup, Timings
from common.prompts import chat_messages
from common.video.frames import load_frames, sample_clip
from jobs.toy import clips
from services.learner.model.policy import load_policy
from services.learner.model.scoring import Kept, token_scores
from services.learner.parallel import start_ranks
from services.learner.probe import BOUNDS, Gap, logprob_gap
from services.rollout import masks
from services.rollout.engine import Engine, Generation, _engine_arguments
from tests.fixtures.learner.groups import NUM_LETTERS

TINY = Path(__file__).parents[3] / "deploy/tiny-qwen3vl"
FORBIDDEN = (NUM_LETTERS + 3, NUM_LETTERS + 4)
SHARED = Shared(run_id="r", model=str(TINY), sampling=Sampling(top_p=0.85, top_k=4))
ON_GPU = Rollout(device="cuda")


@pytest.fixture(scope="module")
def vllm() -> Any:
    """Its wire classes and its checks; no engine is started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        from vllm import SamplingParams, outputs
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.logprobs import Logprob
        from vllm.v1.engine.output_processor import RequestState
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
        from vllm.v1.worker.gpu.sample.output import SamplingMaskTensors
    return SimpleNamespace(
        outputs=outputs,
        truncated=apply_top_k_top_p,
        SamplingMaskTensors=SamplingMaskTensors,
        RequestState=RequestState,
        Logprob=Logprob,
        SamplingParams=SamplingParams,
        AsyncEngineArgs=AsyncEngineArgs,
    )


def engine(*, masked: bool) -> Engine:
    """Without an engine behind it: what it asks and how it reads answers."""
    made = Engine.__new__(Engine)
    made._masked, made._forbidden = masked, list(FORBIDDEN)
    return made


def completion(vllm: Any, rows: Sequence[Sequence[int]] | None) -> Any:
    """An answer of two tokens, 5 and 7, as `AsyncLLM.generate` ends with."""
    span = vllm.outputs.WeightVersionSpan(version="3", start=0, end=2)
    return vllm.outputs.CompletionOutput(
        index=0,
        text="",
        token_ids=[5, 7],
        cumulative_logprob=None,
        logprobs=[{5: vllm.Logprob(-0.5, 1, None)}, {7: vllm.Logprob(-1.25, 2, None)}],
        finish_reason="stop",
        sampling_mask=None if rows is None else vllm.outputs.SamplingMask([*map(list, rows)]),
        weight_versions=[span],
    )


class TestTheWayOfAMask:
    """Through vLLM's own code from truncated logits to a finished answer; only the kernel that
    reads the ids off them needs a GPU."""

    def test_the_learner_has_the_log_probabilities_that_vllm_reports(self, vllm: Any) -> None:
        torch.manual_seed(0)
        raw_TV = 3 * torch.randn(16, 40)
        left_TV = vllm.truncated(raw_TV.clone(), torch.full((16,), 6), torch.full((16,), 0.85))
        probabilities_TV = left_TV.softmax(-1)
        ids_T = probabilities_TV.multinomial(1)[:, 0]
        logprobs_T = probabilities_TV.log()[range(16), ids_T]
        rows = [row.isfinite().nonzero()[:, 0].tolist() for row in left_TV]
        assert {len(row) for row in rows} > {1}
        steps = [lists(vllm, [[0], row], width=4) for row in rows]
        output = finished(vllm, ids_T.tolist(), logprobs_T.tolist(), steps)
        sample = engine(masked=True)._sample(output)
        assert sample.kept is not None
        kept = Kept(torch.tensor([*sample.kept.counts]), torch.tensor([*sample.kept.ids]))
        found_T, entropy_T = token_scores(raw_TV, ids_T, kept)
        assert found_T.tolist() == pytest.approx([*sample.logprobs], abs=1e-6)
        wanted_T = torch.distributions.Categorical(logits=left_TV).entropy()
        assert entropy_T.tolist() == pytest.approx(wanted_T.tolist(), abs=1e-5)
        blind_T, _ = token_scores(raw_TV, ids_T, None)
        assert float((blind_T - found_T).abs().max()) > 0.1

    def test_a_row_wider_than_top_k_comes_whole(self, vllm: Any) -> None:
        """Ties: vLLM keeps all of them, and returns a bitmask."""
        rows = [[4, 5, 8, 9], [7]]
        steps = [lists(vllm, [[1], row], width=2) for row in rows]
        kept = masks.kept_tokens(finished(vllm, [5, 7], [-1.0, 0.0], steps), forbidden=())
        assert (list(kept.ids), list(kept.counts)) == ([4, 5, 8, 9, 7], [4, 1])


def lists(vllm: Any, rows: Sequence[Sequence[int]], *, width: int) -> Any:
    """What the scheduler gives our request, the second of a batch, of the runner's tensors."""
    compact = torch.full((len(rows), width), -1, dtype=torch.int32)
    bits = np.zeros((len(rows), 40), dtype=np.uint8)
    for number, row in enumerate(rows):
        compact[number, : len(row[:width])] = torch.tensor(row[:width], dtype=torch.int32)
        bits[number, row] = 1
    packed = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little"))
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    return vllm.SamplingMaskTensors(compact, packed, counts, 40).tolists().slice_request(1, 1)


def finished(vllm: Any, token_ids: list[int], logprobs: list[float], steps: Sequence[Any]) -> Any:
    """The answer that vLLM's output processor makes of what the scheduler sent."""
    entries = [
        {token: vllm.Logprob(logprob, 1, None)}
        for token, logprob in zip(token_ids, logprobs, strict=True)
    ]
    state = vllm.RequestState.__new__(vllm.RequestState)
    state.detokenizer = SimpleNamespace(
        get_next_output_text=lambda *_: "",
        output_token_ids=token_ids,
        num_output_tokens=lambda: len(token_ids),
    )
    state.logprobs_processor = SimpleNamespace(logprobs=entries, cumulative_logprob=None)
    state.output_kind = "final only"
    state.sampling_mask_chunks = list(steps)
    state.routed_experts_chunks, state.spec_decode_metrics = [], None
    state.weight_version_starts, state.request_index = [("3", 0)], 0
    return state._new_completion_output(token_ids, "stop", None)


class TestAnswers:
    def test_forbidden_tokens_were_no_choice_however_far_top_k_reaches(self, vllm: Any) -> None:
        rows = [[5, *FORBIDDEN], [7, 8, FORBIDDEN[0]]]
        kept = masks.kept_tokens(completion(vllm, rows), forbidden=FORBIDDEN)
        assert (list(kept.ids), list(kept.counts)) == ([5, 7, 8], [1, 2])

    @pytest.mark.parametrize(("rows", "found"), [(None, 0), ([[5]], 1), ([[5], [7], [1]], 3)])
    def test_an_engine_with_masks_owes_one_a_token(self, vllm: Any, rows: Any, found: int) -> None:
        with pytest.raises(EngineError, match=rf"masks of {found} tokens, wanted 2.*top_k"):
            engine(masked=True)._sample(completion(vllm, rows))

    def test_an_engine_without_them_says_nothing(self, vllm: Any) -> None:
        assert engine(masked=False)._sample(completion(vllm, None)).kept is None


class TestRequests:
    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(top_p=0.85, top_k=50, seed=3),
            Sampling(temperature=0.0),
            Sampling(temperature=0.0, top_p=0.5, top_k=7),
            Sampling(temperature=1e-6, top_k=7),
        ],
    )
    def test_vllm_takes_each_with_masks(self, vllm: Any, sampling: Sampling) -> None:
        """What its input processor asks of requests to such an engine."""
        asked = engine(masked=True)._parameters(sampling, num_samples=2)
        assert isinstance(asked, vllm.SamplingParams)
        assert asked.temperature > 0
        assert asked.top_k > 0

    def test_a_greedy_answer_is_of_the_most_probable_token_and_ties_are_repeatable(
        self, vllm: Any
    ) -> None:
        asked = engine(masked=True)._parameters(Sampling(temperature=0.0), num_samples=1)
        assert (asked.top_k, asked.top_p, asked.temperature, asked.seed) == (1, 1.0, 1.0, 0)

    def test_untruncated_sampling_is_refused_in_one_line(self) -> None:
        with pytest.raises(EngineError, match=r"sampling\.top_k: found 0.*weights = \"checkpoint"):
            engine(masked=True)._parameters(Sampling(), num_samples=1)

    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.85, top_k=50, seed=3)])
    def test_without_masks_everything_goes_as_it_was_asked(
        self, vllm: Any, sampling: Sampling
    ) -> None:
        asked = engine(masked=False)._parameters(sampling, num_samples=2)
        wanted = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed)
        assert (asked.temperature, asked.top_p, asked.top_k, asked.seed) == wanted


class TestEngine:
    def test_a_ring_on_gpus_asks_for_masks_and_for_their_log_probabilities(self, vllm: Any) -> None:
        asked = _engine_arguments(TINY, SHARED, ON_GPU)
        assert isinstance(asked, vllm.AsyncEngineArgs)
        assert asked.return_sampling_mask
        assert asked.logprobs_mode == "processed_logprobs"

    @pytest.mark.parametrize(
        ("changed", "rollout"),
        [
            ({}, Rollout(device="cpu")),
            ({}, Rollout(device="cuda", weights="checkpoint")),
            ({"sampling": Sampling()}, ON_GPU),
            ({"sampling": Sampling(top_p=0.85)}, ON_GPU),
        ],
    )
    def test_everybody_else_has_raw_log_probabilities(
        self, vllm: Any, changed: dict[str, Any], rollout: Rollout
    ) -> None:
        asked = _engine_arguments(TINY, SHARED.model_copy(update=changed), rollout)
        assert not asked.return_sampling_mask
        assert asked.logprobs_mode == "raw_logprobs"

    def test_where_there_is_no_runner_with_masks_the_refusal_names_the_knob(
        self, vllm: Any
    ) -> None:
        """vLLM's own check, of the engine for CPUs that is installed."""
        asked = vllm.AsyncEngineArgs(model=str(TINY), **masks.engine_settings(SHARED, ON_GPU))
        with pytest.raises(ValueError, match="requires Model Runner V2") as refused:
            asked.create_engine_config()
        said = masks.explained(refused.value, shared=SHARED)
        assert "shared.sampling.top_k is 4" in said
        assert "VLLM_USE_V2_MODEL_RUNNER=0" in said
        assert masks.explained(ValueError("no such model"), shared=SHARED) == "no such model"


def test_a_run_file_asks_for_them() -> None:
    sections = {
        "shared": {"run_id": "r", "model": "m", "sampling": {"top_p": 0.85, "top_k": 4}},
        "rollout": {"device": "cuda"},
        "learner": {"rows": "rows", "run_dir": "run", "steps": 1},
    }
    run = config.parse(sections, environ={})
    assert masks.engine_settings(run.shared, run.rollout)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
async def test_engine_and_learner_agree_about_truncated_answers(tmp_path: Path) -> None:
    """vLLM's GPU model runner at top_p .85, within the bounds that stop a run."""
    clips.write_split(tmp_path, "validation", num_clips=1, num_processes=1)
    clip = sample_clip(tmp_path / clips.clip_path("validation", 0), sampling=clips.SAMPLING)
    sampling = Sampling(top_p=0.85, top_k=50, max_tokens=18, seed=1)
    truncated = {"dtype": "bfloat16", "max_prompt_tokens": 900, "sampling": sampling}
    sizes = {"max_model_len": 1024, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.3}
    engine = await Engine.start(
        SHARED.model_copy(update=truncated), rollout=ON_GPU.model_copy(update=sizes)
    )
    ask = partial(
        engine.generate,
        chat_messages(clips.PROBLEM.format(query="the red circle is visible")),
        clip=clip,
        frames=load_frames(clip),
    )
    try:
        made = await ask(num_samples=8, sampling=sampling)
        greedy = await ask(num_samples=1, sampling=Sampling(temperature=0.0, max_tokens=18))
    finally:
        engine.shutdown()
    counts = [count for sample in made.samples if sample.kept for count in sample.kept.counts]
    assert len(counts) == sum(len(sample.token_ids) for sample in made.samples)
    assert max(counts) > 1
    assert greedy.samples[0].kept is not None
    assert set(greedy.samples[0].kept.counts) == {1}
    exact = gap(made.samples, made, clip)
    max_nats, mean_nats = BOUNDS["bfloat16"]
    assert exact.max_nats < max_nats
    assert exact.mean_nats < mean_nats
    unmasked = [sample.model_copy(update={"kept": None}) for sample in made.samples]
    assert gap(unmasked, made, clip).mean_nats > exact.mean_nats


def gap(samples: Sequence[Sample], made: Generation, clip: ClipRef) -> Gap:
    """Of an engine's samples, as the parity gate has it on one GPU."""
    group = ScoredGroup(
        prompt_id="p",
        row_id="r",
        epoch=0,
        mode="answer",
        clip=clip,
        prompt_token_ids=made.prompt_token_ids,
        num_visual_tokens=made.num_visual_tokens,
        grid_thw=made.grid_thw,
        samples=tuple(samples),
        verdicts=tuple(Scored(reward=0.0, parts={}) for _ in samples),
        replica="none",
        timings=Timings(decode_s=0.0, generate_s=0.0, score_s=0.0),
    )
    policy = load_policy(TINY, dtype=torch.bfloat16, device="cuda")
    ranks = start_ranks("cuda", timeout_s=60)
    try:
        return logprob_gap(policy, group, ranks=ranks, max_nats=BOUNDS["bfloat16"][0])
    finally:
        ranks.close()
