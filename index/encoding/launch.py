"""Which of several processes this one is, as its launcher or its user says."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fanoise.errors import InputError

_RANKS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, accelerate, deepspeed
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    """Place among the processes on this machine, if the launcher tells."""

    @property
    def device(self) -> str | None:
        """This process's own GPU; None for the default where there is but one process, or no GPU."""
        if self.size == 1 or self.local_rank is None:
            return None
        import torch

        count = torch.cuda.device_count()
        return f"cuda:{self.local_rank % count}" if count else None


def read_launch(shard_of: str | None, environ: Mapping[str, str] = os.environ) -> Launch:
    """From `shard_of`, such as "2/8" for the second of eight, else from what launchers put into the environment.

    Raises: InputError for a `shard_of` that is none.
    """
    if shard_of is not None:
        number, _, size = shard_of.partition("/")
        if not (number.isdecimal() and size.isdecimal() and 1 <= int(number) <= int(size)):
            raise InputError(f"--shard-of must be like 2/8, the second of eight processes, got {shard_of!r}")
        return Launch(rank=int(number) - 1, size=int(size))
    for rank, world, local in _RANKS:
        if environ.get(rank, "").isdecimal() and environ.get(world, "").isdecimal():
            local_rank = int(environ[local]) if environ.get(local, "").isdecimal() else None
            return Launch(rank=int(environ[rank]), size=int(environ[world]), local_rank=local_rank)
    return Launch()
