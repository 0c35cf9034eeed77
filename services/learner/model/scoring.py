"""Logits of answer tokens → their log-probabilities and entropies, over all ids or the kept ones.

`policy.py` has the head and cuts its tokens into pieces. An answer of truncated sampling comes with
the ids that each of its tokens was chosen from (`KeptTokens`): everything else had probability 0,
so the policy that sampled it is

    log π(y) = z_y - log Σ_{k kept} exp z_k

and ratios, gaps, KL, entropy and gradients are taken to that. The set is part of the sample: it
stays what it was when weights change. A row that was given, not sampled, is scored over all ids.

Shapes: T tokens of a piece, V vocabulary, N kept ids of all T tokens.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """What tokens were chosen from."""

    counts_T: Tensor
    """[T] int64 >= 0, ids of each token; 0: all."""
    ids_N: Tensor
    """[N] int32, those of the first token first."""

    def split(self, size: int) -> list[Self]:
        """Pieces of `size` tokens, as `torch.split` cuts them."""
        counts = torch.split(self.counts_T, size)
        ids = torch.split(self.ids_N, torch.stack([piece.sum() for piece in counts]).tolist())
        return [type(self)(*piece) for piece in zip(counts, ids, strict=True)]

    def left_out_TV(self, num_ids: int) -> Tensor:
        """[T, V] bool, True where an id had no chance."""
        rows_N = torch.repeat_interleave(self.counts_T, output_size=len(self.ids_N))
        left_out_TV = (self.counts_T > 0)[:, None].expand(-1, num_ids).clone()
        left_out_TV[rows_N, self.ids_N.long()] = False
        return left_out_TV


def token_scores(logits_TV: Tensor, ids_T: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
    """[T] log-probabilities of the ids with gradient, [T] entropies without; both in nats.

    Args:
        logits_TV: float32 or float64.
        ids_T: int64, tokens of the answers; each among its kept ids.
        kept: None: all tokens were chosen from all ids.
    """
    if kept is not None:
        logits_TV = logits_TV.masked_fill(kept.left_out_TV(logits_TV.shape[1]), -torch.inf)
    logprobs_TV = logits_TV.log_softmax(-1)
    with torch.no_grad():
        terms_TV = logprobs_TV.exp() * logprobs_TV
        if kept is not None:  # 0 · log 0
            terms_TV.nan_to_num_(nan=0.0)
        entropy_T = -terms_TV.sum(-1)
    return logprobs_TV.gather(1, ids_T[:, None])[:, 0], entropy_T
