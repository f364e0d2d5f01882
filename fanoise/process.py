"""Settings of a whole process: of every command, before torch is imported, and of those that it forks."""

import logging
import os
import warnings
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


def prepare_process() -> None:
    """Set environment defaults and quiet other libraries; what the user has set in the environment stays.

    Call it first in a command. On shared or few cores, OpenMP threads that spin while they wait for each other slow
    everything down: with two threads and a second busy process on two cores, a training step took 5 s spinning and
    0.7 s sleeping.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # PIL's and pypdfium2's are about odd metadata and XFA forms; catch_warnings where they come from is not for threads
    warnings.filterwarnings("ignore", module="deepspeed|torch|transformers|peft|accelerate|PIL|pypdfium2")


def settle_accelerator() -> None:
    """Tell DeepSpeed there is only a CPU where that is so; left to find out, it warns on every start.

    transformers and peft import DeepSpeed where it is installed, so this goes before them too. Imports torch.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def settle_worker(*, shared_memory: bool) -> None:
    """Fit a forked process to prepare batches for the one that runs the model. Imports torch.

    It gets one thread: the cores belong to the model, and OpenMP's threads do not survive a fork. Containers have 64 MB
    of shared memory, a few batches; where it is full, torch loses the batch and its DataLoader waits for ever. So what
    finds no room there goes through the pipe as bytes, ten times as slow.

    Args:
        shared_memory: whether tensors go there at all. Those of a process that may be killed at any time should not.
    """
    import torch

    torch.set_num_threads(1)
    ForkingPickler.register(torch.Tensor, _in_shared_memory if shared_memory else _as_bytes)


def _in_shared_memory(tensor: "torch.Tensor") -> tuple[Any, ...]:
    from torch.multiprocessing.reductions import reduce_tensor

    try:
        tensor.share_memory_()
    except RuntimeError:  # no room
        return _as_bytes(tensor)
    return reduce_tensor(tensor)


def _as_bytes(tensor: "torch.Tensor") -> tuple[Any, ...]:
    """NumPy has not all of torch's types, but bytes."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return _from_bytes, (flat.view(torch.uint8).numpy(), flat.dtype, tensor.shape)


def _from_bytes(data: "np.ndarray", dtype: "torch.dtype", shape: "torch.Size") -> "torch.Tensor":
    import torch

    return torch.from_numpy(data).view(dtype).reshape(shape)
