"""Bytes of a learner rank: sizes, settings and tokens → `RankMemory`; the tokens that fit (pure).

Estimates, with the formula of each part in its docstring; GB = 1e9 bytes throughout. Held against
one measurement (Qwen3-VL-4B, one card, 16,002 + 8 x 256 tokens): a step with AdamW takes 82 GB
measured and 81 by these formulas; forward and backward without AdamW's states 39 measured and 52 by
these, because gradients and activations do not peak together. They err to the safe side. With
`[learner.lora]` nothing was measured.

`tempsamp plan` shows them; the learner takes its default `learner.max_tokens_per_rank` from them.
"""

from dataclasses import dataclass
from typing import Literal

from common.config import Learner, Shared
from common.model.adapters import trained
from common.model.architecture import Architecture

BF16, FP32 = 2, 4
Place = Literal["device", "host"]
NODE_GPUS = 8
"""Of a node, for learner.shard_within = "node". Assumed."""
GATHERED_LAYERS = 3
"""The layer in work, the next one prefetched, the last one being freed."""
REDUCED_LAYERS = 2
"""Gradients of a layer in float32 while they are summed over ranks, and those of the next one."""
MAX_LOGITS = 2**27
"""Held at once by the learner (`services.learner.model.policy`)."""
LOGITS_BYTES = 18
"""A logit: bfloat16, float32, log-softmax, its exponential, their product."""
CONTEXT_BYTES = 3e9
"""CUDA context and NCCL's buffers. Assumed."""
STREAMS = 2
"""Weights travel as two: frozen tensors and trained ones (`services.learner.publishing`)."""
LANDINGS = 2
"""Device buckets of each stream that is kept in host memory."""
DELTA_SHARE = 0.04
"""Of the trained stream that its delta takes: 2 % changed bfloat16 values of 4 bytes each (two for
the place, two for the value). Assumed; a larger learning rate changes more, at most all of it."""
USABLE = 0.92
"""Of a card's memory; the rest is lost between blocks of the allocator."""
GROUPS_AT_ONCE = 2
"""Of the longest that gradient_checkpointing = "auto" makes room for: ranks even out by adding up
unequal groups, and one rank in two has a longer one than the other."""
MANY = 2**20
"""Tokens; enough for a slope."""


@dataclass(frozen=True, slots=True)
class Card:
    """A learner's GPU."""

    num_bytes: float
    ranks: int
    """That share states and gradients, one a card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a rank forwards at once."""

    packed: int
    """Tokens: prompts once and all answers."""
    prompt: int
    """Of them those of prompts."""
    answers: int
    """Answers that read each prompt."""
    scored: int
    """Tokens whose logits are computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """One learner rank, bytes."""

    states: float
    """Float32 masters, gradients and both AdamW states: 16 B a trained parameter over the ranks
    that share a copy (learner.shard_within). Below adapters, the frozen weights too, in the compute
    dtype."""
    temporaries: float
    """Of AdamW's step: 4 B a trained parameter over those ranks, as measured before it was fused;
    fused it should need none. Not beside activations."""
    replicated: float
    """In the compute dtype: the frozen tower, and this rank's share of a KL term's reference model,
    which has a whole tower of its own if the policy trains its; adapters need no reference."""
    root: float
    """Embedding and head stay gathered: weights and gradients in bfloat16, sums in float32. Below
    adapters, weights alone."""
    gathered: float
    """Layers gathered in bfloat16, gradients reduced in float32 (of adapters: left out)."""
    kept: float
    """Between forward and backward: each layer's input with checkpointing, everything without."""
    inside: float
    """Of the layer in work, with its gradients: MLP, attention, copies of the prompt's keys."""
    logits: float
    snapshot: float
    """Rank 0's copy of the model in shared.dtype, which travels to replicas; with
    learner.weight_staging = "host" its device buckets alone. Beside it the buckets in which ranks
    meet and, with learner.publish = "delta", a delta and the bucket that it is found in."""
    features: float
    """Of clips, kept on the device: learner.device_feature_cache_bytes."""
    start: float
    """A single rank: the whole model in float32; several: a share and the largest tensor."""

    @property
    def backward(self) -> float:
        """While a micro-batch is in work."""
        activations = self.root + self.gathered + self.kept + self.inside + self.logits
        kept = self.replicated + self.features + self.snapshot
        return self.states + kept + activations + CONTEXT_BYTES

    @property
    def step(self) -> float:
        """While AdamW steps."""
        kept = self.replicated + self.features + self.snapshot
        return self.states + self.temporaries + kept + CONTEXT_BYTES

    @property
    def peak(self) -> float:
        """The largest of the three."""
        return max(self.backward, self.step, self.start + CONTEXT_BYTES)


def rank_memory(
    shared: Shared,
    *,
    learner: Learner,
    architecture: Architecture,
    load: Load,
    ranks: int,
    recomputed: float,
) -> RankMemory:
    """One rank's share while it forwards `load`; `recomputed`: share of the layers that are."""
    parameters, changing = trained(architecture, learner)
    width = BF16 if shared.dtype == "bfloat16" else FP32
    sharing = _ranks_of_a_copy(learner, ranks)
    layer = architecture.decoder_parameters / architecture.layers
    kept = _kept_bytes(architecture, load, width)
    boundary = load.packed * architecture.hidden * width
    reduced = learner.lora is None
    return RankMemory(
        states=(4 * FP32 * parameters + _below_adapters(architecture, learner, width)) / sharing,
        temporaries=FP32 * parameters / sharing,
        replicated=_replicated(architecture, learner, width, sharing),
        root=(2 * width + FP32 if reduced else width) * architecture.root_parameters,
        gathered=(GATHERED_LAYERS * width + REDUCED_LAYERS * FP32 * reduced) * layer,
        kept=architecture.layers * (boundary + (1 - recomputed) * kept),
        inside=2 * kept + _backward_keys(architecture, load, width),
        logits=LOGITS_BYTES * min(MAX_LOGITS, load.scored * architecture.vocabulary),
        features=_features(learner),
        snapshot=_snapshot(architecture, learner, changing=changing, width=width, ranks=ranks),
        start=FP32 * architecture.parameters
        if ranks == 1
        else FP32 * (parameters / sharing + architecture.root_parameters),
    )


def tokens_that_fit(
    shared: Shared,
    *,
    learner: Learner,
    architecture: Architecture,
    card: Card,
    recomputed: float,
) -> int:
    """Packed tokens a rank can forward at once; below 1 when the card is too small for the rest.

    (usable - backward(0)) / slope: `RankMemory.backward` is linear in tokens once logits are at
    their bound. All tokens are taken for prompts, which answers copy keys and values of.
    """

    def backward(tokens: int) -> float:
        load = Load(packed=tokens, prompt=tokens, answers=shared.group_size, scored=MAX_LOGITS)
        return rank_memory(
            shared,
            learner=learner,
            architecture=architecture,
            load=load,
            ranks=card.ranks,
            recomputed=recomputed,
        ).backward

    slope = (backward(MANY) - backward(0)) / MANY
    return int((USABLE * card.num_bytes - backward(0)) / slope)


def fewest_recomputed(
    shared: Shared, *, learner: Learner, architecture: Architecture, card: Card
) -> float:
    """`gradient_checkpointing` as a share of layers; "auto": as few as fit what is wanted.

    Wanted is `learner.max_tokens_per_rank`, or two of the longest groups that `[shared]` allows.
    """
    chosen = learner.gradient_checkpointing
    if chosen != "auto":
        return recomputed_share(chosen)
    longest = shared.max_prompt_tokens + shared.group_size * shared.sampling.max_tokens
    wanted = learner.max_tokens_per_rank or GROUPS_AT_ONCE * longest
    for every in (0, 4, 3, 2):
        share = 1 / every if every else 0.0
        room = tokens_that_fit(
            shared,
            learner=learner,
            architecture=architecture,
            card=card,
            recomputed=share,
        )
        if room >= wanted:
            return share
    return 1.0


def room_on_card(
    shared: Shared, *, learner: Learner, architecture: Architecture, card: Card
) -> tuple[float, int]:
    """The share of layers that is recomputed, and the packed tokens that fit with it."""
    recomputed = fewest_recomputed(shared, learner=learner, architecture=architecture, card=card)
    tokens = tokens_that_fit(
        shared, learner=learner, architecture=architecture, card=card, recomputed=recomputed
    )
    return recomputed, tokens


def recomputed_share(chosen: str | int) -> float:
    """Of the layers: 1 / n for every n-th."""
    return 1 / chosen if isinstance(chosen, int) else float(chosen == "on")


def _ranks_of_a_copy(learner: Learner, ranks: int) -> int:
    known = {"all": ranks, "node": min(ranks, NODE_GPUS)}
    within = learner.shard_within
    return within if isinstance(within, int) else known[within]


def _below_adapters(architecture: Architecture, learner: Learner, width: int) -> int:
    """Frozen weights that are spread over ranks."""
    if learner.lora is None:
        return 0
    tower = 0 if learner.freeze_vision else architecture.tower_parameters
    return width * (architecture.language_parameters + tower)


def _replicated(architecture: Architecture, learner: Learner, width: int, ranks: int) -> float:
    tower = architecture.tower_parameters if _has_frozen_tower(learner) else 0
    reference = architecture.language_parameters / ranks if _has_reference(learner) else 0
    return float(width * (tower + reference))


def _features(learner: Learner) -> float:
    return float(learner.device_feature_cache_bytes if _has_frozen_tower(learner) else 0)


def _has_reference(learner: Learner) -> bool:
    return learner.loss.kl_coef > 0 and learner.lora is None


def _has_frozen_tower(learner: Learner) -> bool:
    """The policy's, or that of a reference beside a trained one."""
    return learner.freeze_vision or _has_reference(learner)


def _snapshot(
    architecture: Architecture, learner: Learner, *, changing: int, width: int, ranks: int
) -> float:
    kept = staged_bytes(
        width * architecture.parameters, learner.weight_staging, bucket_bytes=learner.bucket_bytes
    )
    # Each stream has its own.
    messages = STREAMS * learner.bucket_bytes if ranks > 1 else 0
    deltas = 0.0
    if learner.publish == "delta":
        deltas = DELTA_SHARE * width * changing + learner.bucket_bytes
    return kept + messages + deltas


def staged_bytes(size: int, place: Place, *, bucket_bytes: int) -> float:
    """Device memory of both streams of one receiver, or of rank 0."""
    return float(size if place == "device" else STREAMS * LANDINGS * bucket_bytes)


def _kept_bytes(architecture: Architecture, load: Load, width: int) -> float:
    """What the forward of one layer keeps: four MLP tensors, queries to outputs, four hidden ones.

    Keys and values of the prompt are copied once an answer, twice. A gated delta net keeps about 15
    tensors as wide as its values in float32 (counted without flash-linear-attention's savings).
    """
    packed = load.packed
    mlp = 4 * packed * architecture.intermediate * width
    hidden = 4 * packed * architecture.hidden * width
    query, key = architecture.query_width, architecture.key_width
    copies = 2 * load.answers * load.prompt * 2 * key * width
    attention = packed * (2 * query + 2 * key) * width + copies
    value = architecture.linear_value_heads * architecture.linear_head_dim
    return float(mlp + hidden + max(attention, 15 * packed * value * FP32))


def _backward_keys(architecture: Architecture, load: Load, width: int) -> float:
    """Gradients of keys and values, spread over all query heads before they are summed."""
    return float(2 * load.answers * load.prompt * architecture.query_width * width)
