"""Where each token of a micro-batch stands in the one sequence that a model is given (pure).

    segment 1: prompts, answers of block 1, of block 2, ...; segment 2: ...

A segment is one group, or several of equal prompts. Its answers are ordered by length and cut into
blocks of nearly equal ones, each padded to its longest: padding stays below a tenth. Everything in
a decoder layer works token by token except two mixers, and only those see segments (`prefix.py`).

Shapes: G groups, S answers a group, P prompt tokens, R answer tokens, L packed tokens. The last
token of an answer predicts nothing and is not forwarded.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MAX_PADDING = 0.1
"""Of a block's tokens."""


def blocks(widths: Sequence[int]) -> list[tuple[int, ...]]:
    """Positions of the widths above 0, the longest first, cut so that padding stays in bounds."""
    found: list[list[int]] = []
    real = 0
    for index in sorted(range(len(widths)), key=lambda index: (-widths[index], index)):
        width = widths[index]
        if width == 0:
            break
        if found:
            slots = (len(found[-1]) + 1) * widths[found[-1][0]]
            if real + width >= (1 - MAX_PADDING) * slots:
                found[-1].append(index)
                real += width
                continue
        found.append([index])
        real = width
    return [tuple(block) for block in found]


def packed_lengths(answers: Sequence[int]) -> list[int]:
    """Tokens forwarded for each answer of a group, padding included, the longest first."""
    widths = [length - 1 for length in answers]
    padded = [widths[block[0]] for block in blocks(widths) for _ in block]
    return padded + [0] * (len(widths) - len(padded))


@dataclass(frozen=True, slots=True)
class Block:
    """Answers of a segment that are padded to one length."""

    rows: tuple[int, ...]
    """Positions among a group's answers, the same in every group of the segment."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Groups `first` to `first + num_groups` of a micro-batch: their prompts are equally long."""

    first: int
    num_groups: int
    prompt_tokens: int
    blocks: tuple[Block, ...]

    @property
    def sizes(self) -> list[int]:
        """Tokens of the prompts, and of each block."""
        answers = [self.num_groups * len(block.rows) * block.tokens for block in self.blocks]
        return [self.num_groups * self.prompt_tokens, *answers]

    @property
    def num_tokens(self) -> int:
        """Of all prompts and answers."""
        return sum(self.sizes)

    def split(self, packed: Tensor, *, dim: int) -> tuple[Tensor, list[Tensor]]:
        """[1, ..., L, ...] → prompts [G, ..., P, ...] and a block's answers [G·S, ..., R, ...]."""
        lengths = [self.prompt_tokens, *(block.tokens for block in self.blocks)]
        prompt, *answers = (
            torch.unflatten(piece[0], dim - 1, (-1, length)).movedim(dim - 1, 0)
            for piece, length in zip(torch.split(packed, self.sizes, dim=dim), lengths, strict=True)
        )
        return prompt, answers

    def join(self, prompt: Tensor, answers: Sequence[Tensor], *, dim: int) -> Tensor:
        """The inverse of `split`."""
        pieces = [piece.movedim(0, dim - 1).flatten(dim - 1, dim) for piece in (prompt, *answers)]
        return torch.cat(pieces, dim=dim - 1)[None]

    def fork(self, prompt: Tensor, block: Block) -> Tensor:
        """[G, ...] → [G·S, ...]: one copy an answer; gradients of the copies add up."""
        copies = prompt[:, None].expand(-1, len(block.rows), *prompt.shape[1:])
        return copies.flatten(0, 1)


@dataclass(frozen=True)
class Packing:
    """The layout of one micro-batch."""

    segments: tuple[Segment, ...]
    num_rows: int
    """S of the micro-batch's tensors."""

    @classmethod
    def of(cls, prompt_tokens: Sequence[int], answer_tokens: Sequence[Sequence[int]]) -> "Packing":
        """The layout of groups in their order.

        Args:
            prompt_tokens: [G].
            answer_tokens: [G][S] lengths, 0 in a row that only pads S.
        """
        widths = [[max(0, length - 1) for length in row] for row in answer_tokens]
        segments: list[Segment] = []
        for first, (prompt, row) in enumerate(zip(prompt_tokens, widths, strict=True)):
            merged = _merged(segments[-1], prompt, widths) if segments else None
            if merged is not None:
                segments[-1] = merged
            else:
                segments.append(_segment(first, prompt, [row]))
        return cls(tuple(segments), num_rows=max(map(len, answer_tokens)))

    @property
    def num_tokens(self) -> int:
        """L."""
        return sum(segment.num_tokens for segment in self.segments)

    def split(self, packed: Tensor, *, dim: int) -> tuple[Tensor, ...]:
        """[1, ..., L, ...] → one view a segment."""
        return torch.split(packed, [segment.num_tokens for segment in self.segments], dim=dim)

    @cached_property
    def is_prompt_L(self) -> Tensor:
        """[L] bool."""
        marks = [
            torch.full((size,), position == 0)
            for segment in self.segments
            for position, size in enumerate(segment.sizes)
        ]
        return torch.cat(marks)

    def sources(self, prompt_tokens: int, answer_tokens: int) -> Tensor:
        """[L] where each token is in prompts [G, P] and answers [G, S, R], flat, in a row.

        Args:
            prompt_tokens: P of the tensors.
            answer_tokens: R of the tensors.
        """
        num_groups = sum(segment.num_groups for segment in self.segments)
        pieces = []
        for segment in self.segments:
            groups_G1 = torch.arange(segment.first, segment.first + segment.num_groups)[:, None]
            pieces.append(groups_G1 * prompt_tokens + torch.arange(segment.prompt_tokens))
            for block in segment.blocks:
                rows_GS1 = (groups_G1 * self.num_rows + torch.tensor(block.rows))[..., None]
                steps_R = torch.arange(block.tokens)
                pieces.append(num_groups * prompt_tokens + rows_GS1 * answer_tokens + steps_R)
        return torch.cat([piece.flatten() for piece in pieces])

    def predictors(self, answer_tokens: int) -> Tensor:
        """[G, S, R] the packed token whose hidden state predicts each answer token."""
        num_groups = sum(segment.num_groups for segment in self.segments)
        found_GSR = torch.zeros(num_groups, self.num_rows, answer_tokens, dtype=torch.int64)
        start = 0
        for segment in self.segments:
            groups = slice(segment.first, segment.first + segment.num_groups)
            steps_G = torch.arange(1, segment.num_groups + 1)
            found_GSR[groups, :, 0] = (start + steps_G * segment.prompt_tokens - 1)[:, None]
            start += segment.sizes[0]
            for block, size in zip(segment.blocks, segment.sizes[1:], strict=True):
                shape = (segment.num_groups, len(block.rows), block.tokens)
                places_GSR = torch.arange(start, start + size).view(shape)
                found_GSR[groups, list(block.rows), 1 : block.tokens + 1] = places_GSR
                start += size
        return found_GSR


def _segment(first: int, prompt_tokens: int, widths: Sequence[Sequence[int]]) -> Segment:
    widest = [max(column) for column in zip(*widths, strict=True)]
    made = [Block(rows, widest[rows[0]]) for rows in blocks(widest)]
    return Segment(first, len(widths), prompt_tokens, tuple(made))


def _merged(last: Segment, prompt_tokens: int, widths: Sequence[Sequence[int]]) -> Segment | None:
    """The last segment with the next group in it, if that keeps padding in bounds."""
    if last.prompt_tokens != prompt_tokens:
        return None
    end = last.first + last.num_groups + 1
    together = widths[last.first : end]
    if len({len(row) for row in together}) > 1:
        return None
    merged = _segment(last.first, prompt_tokens, together)
    real = sum(itertools.chain.from_iterable(together))
    slots = merged.num_tokens - merged.sizes[0]
    return merged if real >= (1 - MAX_PADDING) * slots else None
