"""What a replica says, as evaluation and grounding read it."""

import pytest

from common.messages import GeneratedAnswer, GenerateResponse, KeptTokens
from jobs.asking.answers import of_replica
from tests.fixtures.wire import policy_sample


@pytest.mark.parametrize("truncated", [False, True])
def test_probabilities_over_what_sampling_kept_are_not_the_model_s(truncated: bool) -> None:
    """A greedy answer of such a replica is certain, whatever the model means."""
    sample = policy_sample(3)
    kept = KeptTokens(ids=sample.token_ids, counts=(1, 1, 1)) if truncated else None
    made = GeneratedAnswer(sample=sample.model_copy(update={"kept": kept}), text="1 to 2")
    response = GenerateResponse(
        prompt_token_ids=(1,), num_visual_tokens=0, grid_thw=(1, 1, 1), answers=(made,)
    )
    (answer,) = of_replica(response).answers
    assert answer.logprobs == (None if truncated else sample.logprobs)
