"""A made-up model to publish: `Weights(shapes, device); weights.change(.02)`.

Parameters are float32, as the learner keeps them, with values that bfloat16 holds exactly: the
share of them that differs on the wire is known.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

MEGABYTE = 2**20
BYTES_PER_VALUE = 2
COLUMNS = 1024
MATRIX_MB = 8


class Weights:
    """Named parameters."""

    adapters = None

    def __init__(self, shapes: Sequence[tuple[int, ...]], *, device: torch.device) -> None:
        """Random values; the same shapes give the same names."""
        self._named = []
        for number, shape in enumerate(shapes):
            values = (0.02 * torch.randn(shape, device=device)).bfloat16().float()
            self._named.append((f"p{number}", nn.Parameter(values)))
        self.num_bytes = BYTES_PER_VALUE * sum(parameter.numel() for _, parameter in self._named)
        """In bfloat16."""

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As a policy's."""
        yield from self._named

    def change(self, share: float) -> None:
        """Have that share of values differ in bfloat16, at random places."""
        stride = round(1 / share)
        for _, parameter in self._named:
            bits_V = parameter.data.view(-1).view(torch.int32)
            places = torch.arange(0, bits_V.numel() - stride + 1, stride, device=bits_V.device)
            places += torch.randint(0, stride, places.shape, device=bits_V.device)
            bits_V[places] ^= 1 << 16  # the last bit of bfloat16


def megabytes(count: int) -> list[tuple[int, ...]]:
    """Shapes of matrices, each with a vector, that take `count` MiB in bfloat16.

    Raises:
        ValueError: no multiple of a matrix.
    """
    if count <= 0 or count % MATRIX_MB:
        raise ValueError(f"--megabytes: found {count}, wanted a multiple of {MATRIX_MB}")
    rows = MATRIX_MB * MEGABYTE // BYTES_PER_VALUE // COLUMNS
    return [(rows - 1, COLUMNS), (COLUMNS,)] * (count // MATRIX_MB)
