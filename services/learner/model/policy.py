"""`MicroBatch → log-probability and entropy of every answer token`, by one prompt pass a group.

`batch.py` gives the micro-batch, `loss.py` takes the result, `parallel.py` shards the module. A
Hugging Face checkpoint (Qwen3-VL, Qwen3.5, Qwen2.5-VL) does the work; `prefix.py` lets answers
share their prompt, `vision.py` keeps features of frozen towers, `positions.py` numbers the tokens.

Shapes: G groups, S answers a group, P prompt tokens, R answer tokens, T trained tokens, H hidden
size, V vocabulary, L packed tokens (`batching/layout.py`).
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.config import Lora, Room
from common.errors import EngineError, VideoError
from common.messages import ClipRef, ScoredGroup
from common.model import torchvision_cpu
from common.model.expected import ARCHITECTURES, empty_model, refuse_unfit_model
from common.video.frames import load_frames
from services.learner.batching.batch import MicroBatch
from services.learner.batching.layout import Packing
from services.learner.model import lora, prefix, vision
from services.learner.model.features import ClipFeatures
from services.learner.model.positions import prompt_positions
from services.learner.model.scoring import Kept, token_scores

logger = logging.getLogger(__name__)

MAX_LOGITS = 2**27
"""Logits held at once, 0.5 GiB in float32: 900 tokens of a vocabulary of 152k."""

Attention = Literal["sdpa", "flash_attention_2"]


class TokenScores(NamedTuple):
    """Of every answer token; 0 where the mask is False."""

    logprobs_GSR: Tensor
    """float32, nats, <= 0, with gradient; of the distribution the token was drawn from."""
    entropy_GSR: Tensor
    """float32, nats, >= 0, of the distribution the token was drawn from, without gradient."""


class Policy(nn.Module):
    """The trained model; parameters are reached through `forward` only, so FSDP's hooks fire."""

    def __init__(
        self,
        model: Any,
        video_processor: Any,
        *,
        freeze_vision: bool,
        adapters: Lora | None = None,
        memory: Room | None = None,
        load_frames: vision.LoadFrames = load_frames,
    ) -> None:
        """See `load_policy`."""
        super().__init__()
        self.model = model
        self.freeze_vision = freeze_vision
        self.tower.requires_grad_(not freeze_vision)
        self.adapters = (
            lora.adapt(model, adapters, vision=not freeze_vision) if adapters is not None else None
        )
        prefix.install(model.model)
        self.clips = vision.ClipEncoder(
            model.model,
            video_processor,
            frozen=freeze_vision,
            memory=memory or Room(),
            load_frames=load_frames,
        )

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        tower: nn.Module = self.model.model.visual
        return tower

    @property
    def tower_blocks(self) -> nn.ModuleList:
        """The vision tower's layers."""
        blocks: nn.ModuleList = self.model.model.visual.blocks
        return blocks

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The language model's layers."""
        layers: nn.ModuleList = self.model.model.language_model.layers
        return layers

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The checkpoint's parameters under its names, in the same order on every rank.

        Adapters are not among them, nor in them (`Adapters.merged`).
        """
        for name, parameter in self.model.named_parameters():
            if self.adapters is None:
                yield name, parameter
            elif (own := lora.hugging_face_name(name)) is not None:
                yield own, parameter

    def assert_group_matches(self, group: ScoredGroup) -> None:
        """Check that the replica ran the clip that this process would decode.

        Raises:
            VideoError: grid, number of visual tokens or of placeholders differ; names both sides.
        """
        self.clips.assert_matches(group)

    def group_faults(self, groups: Sequence[ScoredGroup]) -> dict[str, str]:
        """Why this rank cannot train on some of its groups, by prompt id; decodes their clips."""
        faults = {}
        for group in groups:
            try:
                self.assert_group_matches(group)
                self._assert_tokens_known(group)
            except (EngineError, VideoError) as error:
                faults[group.prompt_id] = str(error)
        matching = [group for group in groups if group.prompt_id not in faults]
        found = self.clips.decode_faults(group.clip for group in matching)
        return faults | {
            group.prompt_id: f"the learner cannot decode {group.clip.uri}: {fault}"
            for group, fault in zip(matching, found, strict=True)
            if fault is not None
        }

    def _assert_tokens_known(self, group: ScoredGroup) -> None:
        size = int(self.model.get_input_embeddings().num_embeddings)
        kept = (sample.kept.ids for sample in group.samples if sample.kept is not None)
        lists = (group.prompt_token_ids, *(sample.token_ids for sample in group.samples), *kept)
        lowest, highest = min(map(min, lists)), max(map(max, lists))
        if lowest < 0 or highest >= size:
            raise EngineError(
                f"prompt {group.prompt_id} of replica {group.replica}: found token ids "
                f"{lowest} to {highest}, wanted 0 to {size - 1}: both services need the same "
                "shared.model"
            )

    def forward(self, batch: MicroBatch) -> TokenScores:
        """Score every trained answer token of a micro-batch.

        Raises:
            VideoError: a clip cannot be decoded.
        """
        batch = batch.to(self.device)
        packing = Packing.of(batch.prompt_tokens, batch.answer_tokens)
        hidden_LH = self._hidden_states(batch, packing)
        before_GSR = packing.predictors(batch.answer_ids_GSR.shape[2]).to(self.device)
        mask_GSR = batch.answer_mask_GSR
        kept = None
        if batch.kept_counts_GSR is not None and batch.kept_ids_N is not None:
            kept = Kept(batch.kept_counts_GSR[mask_GSR], batch.kept_ids_N)
        logprobs_T, entropy_T = self._score(
            hidden_LH[before_GSR[mask_GSR]], batch.answer_ids_GSR[mask_GSR], kept
        )
        zeros_GSR = torch.zeros_like(mask_GSR, dtype=torch.float32)
        return TokenScores(
            logprobs_GSR=zeros_GSR.masked_scatter(mask_GSR, logprobs_T),
            entropy_GSR=zeros_GSR.masked_scatter(mask_GSR, entropy_T),
        )

    def unadapted(self, batch: MicroBatch) -> TokenScores:
        """As `forward` without the adapters: what the start checkpoint scores; without gradient."""
        assert self.adapters is not None
        with self.adapters.off():
            scores: TokenScores = self(batch)
            return scores

    def _hidden_states(self, batch: MicroBatch, packing: Packing) -> Tensor:
        """[L, H] last hidden states of the packed sequence."""
        inner = self.model.model
        features = self._features(batch)
        prompt_tokens, answer_tokens = batch.prompt_ids_GP.shape[1], batch.answer_ids_GSR.shape[2]
        sources_L = packing.sources(prompt_tokens, answer_tokens).to(self.device)
        flat = torch.cat([batch.prompt_ids_GP.flatten(), batch.answer_ids_GSR.flatten()])
        ids_1L = flat[sources_L][None]
        embeds_1LH = inner.get_input_embeddings()(ids_1L)
        # An answer may hold a placeholder id by chance: only the prompt's stand for the clip.
        is_visual_1L = packing.is_prompt_L.to(self.device) & (ids_1L == inner.config.video_token_id)
        if not batch.clips:
            is_visual_1L[:, : len(features)] = True
        extra: dict[str, Any] = {}
        if features:
            visual_MH = torch.cat([clip.embeds_MH for clip in features]).to(embeds_1LH.dtype)
            embeds_1LH = embeds_1LH.masked_scatter(is_visual_1L[..., None], visual_MH)
        if features and features[0].deepstack_DMH:
            levels = zip(*(clip.deepstack_DMH for clip in features), strict=True)
            extra["deepstack_visual_embeds"] = [torch.cat(level) for level in levels]
            extra["visual_pos_masks"] = is_visual_1L
        hidden_1LH: Tensor = inner.language_model(
            inputs_embeds=embeds_1LH,
            position_ids=self._positions(batch, packing),
            use_cache=False,
            packing=packing,
            **extra,
        ).last_hidden_state
        return hidden_1LH[0]

    def _features(self, batch: MicroBatch) -> list[ClipFeatures]:
        """Of each clip; without clips nothing, or what brings a trained tower into step."""
        if batch.clips:
            return self.clips.features(batch.clips, device=self.device)
        return [] if self.freeze_vision else [self.clips.blank_features(self.device)]

    def _positions(self, batch: MicroBatch, packing: Packing) -> Tensor:
        """[3, 1, L] positions: every answer goes on after its prompt."""
        pieces = []
        for segment in packing.segments:
            groups = slice(segment.first, segment.first + segment.num_groups)
            prompt_3GP = self._prompt_positions(
                batch.prompt_ids_GP[groups, : segment.prompt_tokens], batch.clips[groups]
            )
            pieces.append(prompt_3GP.flatten(1))
            next_G11 = prompt_3GP.amax(dim=(0, 2))[:, None, None] + 1
            for block in segment.blocks:
                steps_R = torch.arange(block.tokens, device=self.device)
                shape = (-1, len(block.rows), -1)
                pieces.append((next_G11 + steps_R).expand(shape).flatten().expand(3, -1))
        return torch.cat(pieces, dim=1)[:, None]

    def _prompt_positions(self, prompt_ids_GP: Tensor, clips: Sequence[ClipRef]) -> Tensor:
        if not clips:
            return torch.arange(prompt_ids_GP.shape[1], device=self.device).expand(3, 1, -1)
        grids = [self.clips.grid(clip) for clip in clips]
        return prompt_positions(self.model.model, prompt_ids_GP, clips=clips, grids=grids)

    def _score(self, hidden_TH: Tensor, ids_T: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
        """[T] log-probabilities, entropies; beyond MAX_LOGITS in pieces, recomputed in backward."""
        # What was left out needs a second copy of the logits.
        piece = max(1, MAX_LOGITS // self.model.lm_head.out_features // (2 if kept else 1))
        if len(ids_T) <= piece:
            return self._score_piece(hidden_TH, ids_T, kept)
        hiddens, ids = torch.split(hidden_TH, piece), torch.split(ids_T, piece)
        pairs = [
            checkpoint(self._score_piece, *of_piece, use_reentrant=False)
            for of_piece in zip(
                hiddens, ids, kept.split(piece) if kept else [None] * len(ids), strict=True
            )
        ]
        logprobs, entropies = zip(*pairs, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _score_piece(
        self, hidden_TH: Tensor, ids_T: Tensor, kept: Kept | None
    ) -> tuple[Tensor, Tensor]:
        return token_scores(self.model.lm_head(hidden_TH).float(), ids_T, kept)


def load_policy(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    freeze_vision: bool = True,
    adapters: Lora | None = None,
    recomputed: float = 0.0,
    attention: Attention | None = None,
    load_frames: vision.LoadFrames = load_frames,
    memory: Room | None = None,
    empty: bool = False,
) -> Policy:
    """Load a checkpoint to train it.

    Args:
        path: a Hugging Face checkpoint folder.
        dtype: of the parameters: float32 for masters (FSDP computes in bfloat16), whatever fits for
            a frozen reference.
        device: where to put it.
        freeze_vision: no gradients for the tower, its features are computed once per clip.
        adapters: train these instead of the weights.
        recomputed: share of the decoder layers that backward computes again instead of keeping what
            they made; 1 / n: every n-th. A trained tower's layers go with them.
        attention: kernel of the vision tower; default flash_attention_2 on CUDA if importable, else
            sdpa. The language model always uses PyTorch's kernels (`attention.py`).
        load_frames: where the frames of a clip come from.
        memory: `[learner]`: what is decoded ahead, and which features are kept.
        empty: on the meta device instead, for `start.py` to give it memory and values.

    Raises:
        ValueError: the checkpoint's architecture is not one of ARCHITECTURES.
        ConfigError: its tensors are not those of its config.json, or adapters for layers that it
            lacks.
    """
    torchvision_cpu.install()
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(path)
    architectures = config.architectures or ["(none)"]
    if architectures[0] not in ARCHITECTURES:
        raise ValueError(
            f"{path}: found architecture {architectures[0]}, wanted one of "
            f"{', '.join(ARCHITECTURES)}: set shared.model"
        )
    refuse_unfit_model(Path(path))
    kernels = {"attn_implementation": attention or _default_attention(torch.device(device))}
    if empty:
        model, device = empty_model(config, dtype=dtype, **kernels), "meta"
    else:
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, **kernels)
    if recomputed > 0:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        recompute_layers(model.model.language_model.layers, every=round(1 / recomputed))
    model.to(device).train()
    return Policy(
        model,
        vision.load_video_processor(str(path)),
        freeze_vision=freeze_vision,
        adapters=adapters,
        load_frames=load_frames,
        memory=memory,
    )


def recompute_layers(layers: Iterable[Any], *, every: int) -> None:
    """Have every n-th of a checkpointed model's decoder layers computed again; 0: none of them."""
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = every > 0 and index % every == 0


def _default_attention(device: torch.device) -> Attention:
    from transformers.utils import is_flash_attn_2_available

    if device.type != "cuda":
        return "sdpa"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    logger.info("flash-attn is not installed (FLASH_ATTN=): the vision tower attends with SDPA")
    return "sdpa"
