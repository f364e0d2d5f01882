"""Settings of a whole process that every command wants before torch is imported."""

import logging
import os
import warnings


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
    warnings.filterwarnings("ignore", module="deepspeed|torch|transformers|peft|accelerate")


def settle_accelerator() -> None:
    """Tell DeepSpeed there is only a CPU where that is so; left to find out, it warns on every start.

    transformers and peft import DeepSpeed where it is installed, so this goes before them too. Imports torch.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
