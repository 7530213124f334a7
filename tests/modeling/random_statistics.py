"""Statistics of box targets, drawn at random."""

from __future__ import annotations

import torch

K = 3


def random_statistics(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = 0.2 * torch.randn(rows, 4, generator=generator)
    return mean, 0.05 + torch.rand(rows, 4, generator=generator)
