"""Stage 2 of the tiny model: the language model learns to ground the queried shape, step by step.

Supervised warm-up on features of the frozen tower: the three queries of a clip share one forward of
the video prefix. Two linear heads, thrown away afterwards, predict from a middle and from the last
layer in which frames the queried shape is visible; without them a few hundred steps do not make the
query matter. `evaluate` gives the greedy mIoU that the start rule of `jobs.toy.make_model` looks
at. The model is run as transformers ships it: features enter by its `mm_encoder_outputs`, the
prefix by its cache.

Shapes: N clips, B = queries of all clips, Q = queries per clip, E = events per clip, L prefix
tokens, S query tokens, R answer tokens, F frames, X = T*V visual tokens, H hidden size.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common import prompts
from common.answers.reading import read_spans
from common.answers.spans import Span, union_iou
from common.answers.tags import thought_of
from common.messages import Mode
from common.video.frames import load_frames, processor_metadata, sample_clip
from jobs.toy.clips import (
    DEMO,
    GRID_S,
    SAMPLING,
    SHAPES_PER_CLIP,
    ClipOptions,
    Event,
)
from jobs.toy.vision import COLOR_NAMES, PERMUTATIONS, ClipTensors, recolored, set_learning_rate

Events = tuple[tuple[Event, ...], ...]
"""Per clip, its events."""

BATCH_CLIPS = 16
LEARNING_RATE = 2e-3
SCHEDULE_STEPS = 500
"""Length of the learning-rate schedule; the start rule stops well before its end."""
MIDDLE_LAYER = 1
MAX_ANSWER_TOKENS = {1: 20, 3: 48}
"""By the largest number of spans."""
MAX_THOUGHT_TOKENS = 20
"""Beside the answer's."""


@dataclass(frozen=True)
class Evaluation:
    """Greedy answers to every query of every clip."""

    miou: float
    distractor_iou: float
    """IoU with the shapes of the clip that were not asked for."""
    answers_differ: float
    """Share of query pairs of one clip whose answers differ."""
    answers: tuple[tuple[str, ...], ...]
    """Per clip, the answer to each query."""


class SharedPrefix:
    """The model, with a clip's part of the prompt forwarded once for all queries about the clip."""

    def __init__(
        self, model: Any, processor: Any, example: Path, *, options: ClipOptions = DEMO
    ) -> None:
        """All such clips share tokens and positions of the clip's part; read them off one file."""
        self.model, self.processor, self.options = model, processor, options
        event = Event(color="red", shape="circle", start_s=0, end_s=1)
        inputs = prompt_inputs(processor, example, query=event.query, options=options)
        positions, _ = model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            video_grid_thw=inputs["video_grid_thw"],
        )
        length = inputs["input_ids"].shape[1] - len(self.query_ids(event))
        self.prefix_L = inputs["input_ids"][0, :length]
        self.positions_3L = positions[:, 0, :length]
        self.next_position = int(positions[0, 0, length])

    def query_ids(self, event: Event, mode: Mode = "answer") -> list[int]:
        """The prompt after the clip, up to where the answer starts."""
        chat = chat_text(self.processor, query=event.query, options=self.options, mode=mode)
        text = chat.partition("<|video_pad|>")[2]
        return list(self.processor.tokenizer(text)["input_ids"])

    def answer_ids(self, event: Event, mode: Mode = "answer") -> list[int]:
        """The true answer, after its thought if one is asked for, and the end of the turn."""
        thought = f"<think> {event.thought} </think>" if mode == "think" else ""
        text = f"{thought}{event.answer}<|im_end|>"
        return list(self.processor.tokenizer(text)["input_ids"])

    def read_clips(self, features_N2XH: Tensor, *, copies: int) -> Any:
        """A cache of N*copies prefixes, each clip's copies in a row; gradients flow through it."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import (
            BaseModelOutputWithDeepstackFeatures,
        )

        vision = BaseModelOutputWithDeepstackFeatures(
            pooler_output=tuple(features_N2XH[:, 0]),
            deepstack_features=[tuple(features_N2XH[:, 1])],
        )
        num_clips = len(features_N2XH)
        cache = self.model.model(
            input_ids=self.prefix_L.expand(num_clips, -1),
            position_ids=self.positions_3L[:, None].expand(-1, num_clips, -1),
            mm_encoder_outputs={"video": vision},
            use_cache=True,
        ).past_key_values
        cache.batch_repeat_interleave(copies)
        return cache

    def read_text(self, cache: Any, tokens_BS: Tensor, *, offset: int = 0) -> Tensor:
        """[B, S, H] of tokens that start `offset` after the prefix; the cache grows by them."""
        first = self.next_position + offset
        positions_S = torch.arange(first, first + tokens_BS.shape[1])
        out: Tensor = self.model.model.language_model(
            inputs_embeds=self.model.get_input_embeddings()(tokens_BS),
            position_ids=positions_S.expand(3, len(tokens_BS), -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return out


@dataclass(frozen=True)
class Batch:
    """Queries of some clips, every clip's queries in a row."""

    features_N2XH: Tensor
    query_BS: Tensor
    answer_BR: Tensor
    answer_mask_BR: Tensor
    visible_BF: Tensor
    """In which frames the queried shape is visible."""


class WarmUp:
    """Model, auxiliary heads and optimizer of the supervised warm-up; `step()` does one update."""

    def __init__(
        self,
        reader: SharedPrefix,
        data: ClipTensors,
        features: list[Tensor],
        *,
        seed: int,
        modes: Sequence[Mode] = ("answer",),
    ) -> None:
        """Everything drawn depends on the seed.

        Args:
            features: of the training clips, one tensor [N, 2, X, H] per channel permutation.
            modes: of the updates, in turn.
        """
        self.reader, self.data, self.features, self.modes = reader, data, features, modes
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        model, frames = reader.model, data.visible_NFC.shape[1]
        self.heads = nn.ModuleList([nn.Linear(features[0].shape[-1], frames) for _ in range(2)])
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = [*trained, *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.num_steps = 0
        red = Event(color="red", shape="circle", start_s=0, end_s=1)
        red_id = reader.processor.tokenizer.convert_tokens_to_ids("\u0120red")
        self.color_at = {mode: reader.query_ids(red, mode).index(red_id) for mode in modes}

    def step(self) -> float:
        """One update; returns the answer loss in nats per token."""
        self.num_steps += 1
        set_learning_rate(
            self.optimizer, peak=LEARNING_RATE, step=self.num_steps, steps=SCHEDULE_STEPS
        )
        mode = self.modes[self.num_steps % len(self.modes)]
        answer_loss, auxiliary_loss = self._losses(self._draw(mode), mode)
        self.optimizer.zero_grad()
        torch.autograd.backward(answer_loss + auxiliary_loss)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return answer_loss.item()

    def _draw(self, mode: Mode) -> Batch:
        clip_ids = self.rng.integers(0, len(self.data.events), BATCH_CLIPS)
        orders = self.rng.integers(0, len(PERMUTATIONS), BATCH_CLIPS)
        features = [self.features[k][n] for n, k in zip(clip_ids, orders, strict=True)]
        queries, answers, visible = [], [], []
        for n, k in zip(clip_ids, orders, strict=True):
            for event in self.data.events[n]:
                seen = replace(event, color=recolored(event.color, PERMUTATIONS[k]))
                queries.append(self.reader.query_ids(seen, mode))
                answers.append(self.reader.answer_ids(event, mode))
                visible.append(self.data.visible_NFC[n, :, COLOR_NAMES.index(event.color)])
        width = max(map(len, answers))
        padded = [ids + [-1] * (width - len(ids)) for ids in answers]
        answer_BR = torch.tensor(padded)
        return Batch(
            torch.stack(features),
            torch.tensor(queries),
            answer_BR.clamp(min=0),
            answer_BR >= 0,
            torch.stack(visible),
        )

    def _losses(self, batch: Batch, mode: Mode) -> tuple[Tensor, Tensor]:
        """Cross-entropy per answer token; that of the heads on the queried shape's visibility."""
        reader, query_length = self.reader, batch.query_BS.shape[1]
        cache = reader.read_clips(batch.features_N2XH, copies=SHAPES_PER_CLIP)
        text = torch.cat([batch.query_BS, batch.answer_BR[:, :-1]], 1)
        layers = reader.model.model.language_model.layers
        with layer_outputs(layers[MIDDLE_LAYER], layers[-1]) as (middle, last):
            hidden = reader.read_text(cache, text)
        logits = reader.model.lm_head(hidden[:, query_length - 1 :])
        answer_loss = functional.cross_entropy(
            logits[batch.answer_mask_BR], batch.answer_BR[batch.answer_mask_BR]
        )
        seen_from = [middle[0][:, self.color_at[mode]], last[0][:, query_length - 1]]
        auxiliary = [
            functional.binary_cross_entropy_with_logits(head(x), batch.visible_BF)
            for head, x in zip(self.heads, seen_from, strict=True)
        ]
        return answer_loss, torch.stack(auxiliary).sum()


@contextmanager
def layer_outputs(*layers: nn.Module) -> Iterator[tuple[list[Tensor], ...]]:
    """One list per layer that fills with the layer's outputs."""
    kept: tuple[list[Tensor], ...] = tuple([] for _ in layers)
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, out, into=into: into.append(out))
        for layer, into in zip(layers, kept, strict=True)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def evaluate(
    reader: SharedPrefix, features_N2XH: Tensor, events: Events, *, mode: Mode = "answer"
) -> Evaluation:
    """Greedy answers to every query, scored against the queried shape and against the others.

    Where a thought is asked for, an answer without one scores 0.
    """
    texts = _greedy(reader, features_N2XH, events, mode)
    if mode == "think":
        texts = [text if thought_of(text) else "" for text in texts]
    k = SHAPES_PER_CLIP
    answers = tuple(tuple(texts[n * k : (n + 1) * k]) for n in range(len(events)))
    iou_NQE = np.array(
        [
            [[span_iou(answer, event) for event in clip] for answer in clip_answers]
            for clip_answers, clip in zip(answers, events, strict=True)
        ]
    )
    asked = np.eye(k, dtype=bool)
    differ = [a != b for clip in answers for a, b in itertools.combinations(clip, 2)]
    return Evaluation(
        miou=float(iou_NQE[:, asked].mean()),
        distractor_iou=float(iou_NQE[:, ~asked].mean()),
        answers_differ=float(np.mean(differ)),
        answers=answers,
    )


def span_iou(answer: str, event: Event) -> float:
    """IoU of the span in an answer with an event; 0 without a span."""
    return union_iou(read_spans(answer).used, event.spans_s)


def best_constant(events: Events, *, duration_s: float = DEMO.duration_s) -> tuple[Span, float]:
    """The span on the demo's grid that scores best as the answer to every query, and its mIoU."""
    truths = [event.spans_s for clip in events for event in clip]
    edges = np.arange(0, duration_s + GRID_S, GRID_S).tolist()
    scored = (
        (span, float(np.mean([union_iou([span], truth) for truth in truths])))
        for span in itertools.combinations(edges, 2)
    )
    return max(scored, key=lambda pair: pair[1])


def chat_text(
    processor: Any, *, query: str, options: ClipOptions = DEMO, mode: Mode = "answer"
) -> str:
    """The demo prompt of a query in the chat template, its clip still one `<|video_pad|>`."""
    asked = options.problem.format(query=query)
    if mode == "think":  # as `common.rows` asks
        asked = prompts.grounding_problem(query, mode=mode)
    messages = prompts.chat_messages(asked)
    turns = [message.model_dump() for message in messages]
    text: str = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return text


def prompt_inputs(processor: Any, path: Path, *, query: str, options: ClipOptions = DEMO) -> Any:
    """What the model's own forward takes for one clip and query, as rollout and learner make it."""
    ref = sample_clip(path, sampling=SAMPLING)
    metadata = processor_metadata(ref)
    del metadata["do_sample_frames"]  # an argument of the processor, not of its metadata
    return processor(
        text=[chat_text(processor, query=query, options=options)],
        videos=[load_frames(ref)],
        video_metadata=[metadata],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )


def _greedy(reader: SharedPrefix, features_N2XH: Tensor, events: Events, mode: Mode) -> list[str]:
    cache = reader.read_clips(features_N2XH, copies=SHAPES_PER_CLIP)
    tokens = torch.tensor([reader.query_ids(event, mode) for clip in events for event in clip])
    offset, answer = 0, []
    most = MAX_ANSWER_TOKENS[reader.options.most_spans]
    for _ in range(most + (MAX_THOUGHT_TOKENS if mode == "think" else 0)):
        hidden = reader.read_text(cache, tokens, offset=offset)
        offset += tokens.shape[1]
        tokens = reader.model.lm_head(hidden[:, -1:]).argmax(-1)
        answer.append(tokens)
    end_id = reader.processor.tokenizer.eos_token_id
    rows = torch.cat(answer, 1).tolist()
    texts: list[str] = reader.processor.tokenizer.batch_decode(
        [list(itertools.takewhile(lambda token: token != end_id, row)) for row in rows]
    )
    return texts
