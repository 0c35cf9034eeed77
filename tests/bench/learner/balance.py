"""How evenly a step's work falls on ranks: `python -m tests.bench.learner.balance`.

Groups are drawn, planned by `services.learner.batching` and weighed by FLOPs: an estimate of time,
without a GPU and without communication. A rank of N waits for the dearest in each micro-batch, so

    useful = Σ cost of whole, unpadded groups / (ranks x Σ over micro-batches max over ranks)

Prompts: 1.5k to 14.5k tokens, evenly; eight answers, log-normal (median 55 tokens, cut at 256).
"""

import argparse
import json
import random
from collections.abc import Sequence
from statistics import median

from common.model.architecture import PUBLISHED
from services.learner.batching.layout import packed_lengths
from services.learner.batching.plan import Limits, Work, flop_cost, plan, useful_share

MODEL = "Qwen/Qwen3-VL-4B-Instruct"
PROMPT_TOKENS = (1_500, 14_500)
TEXT_TOKENS = 0.1
"""Share of a prompt."""
ANSWERS, LONGEST = 8, 256
MAX_TOKENS = 40_000
"""Below what fits an 80 GB card with Qwen3-VL-4B on 8 ranks and all layers recomputed, by
`common.model.memory`."""
FLEETS = ((16, 8), (32, 16))
DRAWS = 100


def drawn(groups: int, random_: random.Random, *, longest: int = LONGEST) -> list[Work]:
    """A step's groups; `longest` answers of 2,048 are those of a thinking model."""
    mu = 4.0 if longest <= LONGEST else 5.8
    works = []
    for index in range(groups):
        prompt = int(random_.uniform(*PROMPT_TOKENS))
        answers = tuple(
            min(longest, int(random_.lognormvariate(mu, 0.7)) + 8) for _ in range(ANSWERS)
        )
        works.append(Work(f"{index}", prompt, int((1 - TEXT_TOKENS) * prompt), answers))
    return works


def padding(works: Sequence[Work]) -> float:
    """Share of the forwarded answer tokens."""
    slots = sum(sum(packed_lengths(work.answers)) for work in works)
    real = sum(length - 1 for work in works for length in work.answers)
    return 1 - real / slots


def figures(
    *, draws: int = DRAWS, max_tokens: int = MAX_TOKENS, longest: int = LONGEST
) -> dict[str, float]:
    """Medians over draws: useful share by "groups/ranks", and "padding"."""
    cost = flop_cost(PUBLISHED[MODEL], passes=4.0, trained_tower=False)
    limits = Limits(max_tokens, cost)
    found: dict[str, float] = {}
    pads = []
    for groups, ranks in FLEETS:
        random_ = random.Random(groups)
        shares = []
        for _ in range(draws):
            works = drawn(groups, random_, longest=longest)
            made = plan(works, world_size=ranks, limits=limits)
            shares.append(useful_share(made, works, cost=cost))
            pads.append(padding(works))
        found[f"{groups}/{ranks}"] = round(median(shares), 3)
    return found | {"padding": round(median(pads), 3)}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--longest", type=int, default=LONGEST)
    asked = parser.parse_args()
    made = figures(draws=asked.draws, max_tokens=asked.max_tokens, longest=asked.longest)
    print(json.dumps(made))  # noqa: T201


if __name__ == "__main__":
    main()
