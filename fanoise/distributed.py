"""Rows from all processes; everything here is a no-op on one process."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: Tensor) -> Tensor:
    """[B, ...] on every process -> [sum of B, ...] in rank order, without gradient. B may differ between processes."""
    if world_size() == 1:
        return rows
    count = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    longest = int(max(counts))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, counts, strict=True)])


def row_offset(rows: int, device: torch.device) -> int:
    """Where this process's rows start in the gathered matrix."""
    counts = gather_rows(torch.tensor([rows], device=device))
    return int(counts[: rank()].sum())
