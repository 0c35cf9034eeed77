"""What the rules of the regimes ask, answered by the records: `verdicts` (pure).

Each question is in `rules.md`, with what counts as yes; here it is applied. A question stays open
until every run that it needs is there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from jobs.demo.comparing import rules
from jobs.demo.comparing.paired import Difference, difference, paired_difference
from jobs.demo.comparing.records import RunRecord

ByRegime = Mapping[str, Sequence[RunRecord]]
Pair = tuple[str, str]
"""A method, and the one that it is to be higher than."""

INJECTING = ("tempsamp", "mixed")
MOST = 0.5
"""Of the groups."""


@dataclass(frozen=True)
class Verdict:
    """One question of a regime's rule."""

    regime: str
    question: str
    answer: str


@dataclass(frozen=True)
class Question:
    """One that is answered by differences in greedy mIoU of the last step."""

    regime: str
    text: str
    ways: tuple[tuple[Pair, ...], ...]
    """Yes if in one of these every pair is higher."""


QUESTIONS = (
    Question(
        "few",
        "Does injecting labels beside the policy's own answers transfer better than learning from "
        "the labels alone?",
        tuple(((method, "sft"),) for method in INJECTING),
    ),
    Question("few", "Does shaping help?", ((("tempsamp", "mixed"),),)),
    Question(
        "noisy",
        "Does judging the policy's own answers protect from noisy labels?",
        tuple(((m, "mixed"), (m, "sft")) for m in ("tempsamp", "downscale", "anchor")),
    ),
    Question(
        "noisy",
        "Does a reward help that is dense where spans miss?",
        ((("tempsamp-set", "tempsamp"),),),
    ),
    Question(
        "long",
        "Does injection find what sampling does not?",
        tuple(((method, "grpo"),) for method in INJECTING),
    ),
)
MECHANISM_TEXT = "Are most groups without a hit at first, and fewer later with injection alone?"
HOLDS_TEXT = "Do the differences of full hold where answers are sets?"


def verdicts(by_regime: ByRegime) -> list[Verdict]:
    """One a question, in the order of the rules."""
    found = [
        Verdict(one.regime, one.text, _by_differences(one, by_regime[one.regime]))
        for one in QUESTIONS
    ]
    found.append(Verdict("long", MECHANISM_TEXT, _mechanism(by_regime["long"])))
    found.append(Verdict("several", HOLDS_TEXT, _holds(by_regime["several"], by_regime["full"])))
    return found


def _by_differences(question: Question, found: Sequence[RunRecord]) -> str:
    pairs = list(dict.fromkeys(chain.from_iterable(question.ways)))
    if missing := _missing(found, chain.from_iterable(pairs)):
        return missing
    seen = {pair: _of(found, pair) for pair in pairs}
    ways = [way for way in question.ways if all(seen[pair].verdict == "higher" for pair in way)]
    shown = chain.from_iterable(ways) if ways else pairs
    said = "; ".join(f"{_name(pair)} {seen[pair].words}" for pair in dict.fromkeys(shown))
    return f"**{'yes' if ways else 'no'}**: {said}"


def _mechanism(found: Sequence[RunRecord]) -> str:
    methods = ("grpo", *INJECTING)
    if missing := _missing(found, methods):
        return missing
    first, last = (f"train_without_hit_{end}" for end in ("start", "end"))
    shares = {method: [_shares(found, method, key) for key in (first, last)] for method in methods}
    falls = {
        method: paired_difference(at_end, at_first).verdict == "lower"
        for method, (at_first, at_end) in shares.items()
    }
    means = {method: [fmean(shares) for shares in both] for method, both in shares.items()}
    is_most = all(at_first > MOST for at_first, _ in means.values())
    is_shown = is_most and any(falls[m] for m in INJECTING) and not falls["grpo"]
    said = "; ".join(f"{m} {a:.3f} to {b:.3f}" for m, (a, b) in means.items())
    return f"**{'yes' if is_shown else 'no'}**: {said}"


def _holds(found: Sequence[RunRecord], full: Sequence[RunRecord]) -> str:
    if missing := _missing(found, rules.METHODS["several"]):
        return missing
    in_full = {
        (claim.method, claim.against): there.verdict
        for claim in rules.CLAIMS
        if (there := difference(full, "miou", method=claim.method, against=claim.against))
        and there.verdict in ("higher", "lower")
    }
    here = {pair: _of(found, pair) for pair in in_full}
    num_held = sum(seen.verdict == in_full[pair] for pair, seen in here.items())
    said = "; ".join(f"{_name(pair)} {seen.words}" for pair, seen in here.items())
    return f"**{num_held} of {len(in_full)} do**: {said}"


def _missing(found: Sequence[RunRecord], methods: Iterable[str]) -> str:
    wanted = {(method, seed) for method in methods for seed in rules.DEFAULT_SEEDS}
    missing = len(wanted - {record.run for record in found})
    return f"open: {missing} of {len(wanted)} runs are missing" if missing else ""


def _of(found: Sequence[RunRecord], pair: Pair) -> Difference:
    seen = difference(found, "miou", method=pair[0], against=pair[1])
    assert seen is not None  # no run is missing
    return seen


def _name(pair: Pair) -> str:
    return " - ".join(pair)


def _shares(found: Sequence[RunRecord], method: str, key: str) -> list[float]:
    """By seed."""
    runs = sorted((one for one in found if one.method == method), key=lambda one: one.seed)
    return [share for one in runs if (share := one.mechanism.get(key)) is not None]
