"""The DeepSpeed engine: process group, ZeRO settings, optimiser and schedule."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from fanoise.embedder import EmbeddingModel
from fanoise.errors import ConfigError
from trainer.config import RunConfig


def init_process_group() -> torch.device:
    """Join the launcher's process group, or make one of a single process. Returns this process's device."""
    if "RANK" not in os.environ:
        # plain `python -m trainer`: without these DeepSpeed asks for mpi4py
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(_free_port())
    cuda = torch.cuda.is_available()
    if not cuda:
        # on CPU DeepSpeed compiles a shared-memory collective for half a minute; gloo's own is good enough
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    if not cuda:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def resolve_dtype(config: RunConfig) -> torch.dtype:
    """The training dtype that `precision` means on this machine.

    Raises: ConfigError for bf16 under ZeRO 0, where chunks' gradients would be added up in bf16, and no fp32 master of
    a weight is kept.
    """
    supported = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and supported)
    if bf16 and config.zero_stage == 0:
        raise ConfigError(
            f"zero_stage 0 trains in fp32 only, and precision {config.precision} is bf16 on this machine; "
            "take zero_stage 1 or higher, or precision fp32"
        )
    return torch.bfloat16 if bf16 else torch.float32


def make_engine(module: EmbeddingModel, config: RunConfig) -> Any:
    """A DeepSpeed engine around `module` with AdamW and a linear schedule with warm-up.

    Args:
        module: for ZeRO 3 on the CPU, else on the engine's device.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # torch's AdamW on purpose: DeepSpeed's own is compiled at first use, 40 s on a CPU
    optimizer = torch.optim.AdamW(
        trainable, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay, betas=(0.9, 0.999)
    )
    schedule = get_linear_schedule_with_warmup(optimizer, config.optimizer.warmup_steps, config.max_steps)
    settings = deepspeed_config(config)
    with _without_compiler():
        if config.zero_stage == 3:
            _share_out(module, settings, resolve_dtype(config))
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, lr_scheduler=schedule, config=settings)
    engine.monitor.enabled = False  # for its own numbers, by a count of samples that it gets wrong; it takes ours
    return engine


def _share_out(module: nn.Module, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Split the parameters over the processes one by one, so that no device has to hold the whole model."""
    device = torch.device(deepspeed.get_accelerator().current_device_name())
    for buffer in module.buffers():  # DeepSpeed moves, and casts, whole models only
        buffer.data = buffer.data.to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    deepspeed.zero.Init(module=module, dtype=dtype, config_dict_or_path=settings)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """For ZeRO, DeepSpeed compiles an optimiser that nobody asked for (Muon): a second or two of every start."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """What `deepspeed.initialize` is told."""
    settings: dict[str, Any] = {"zero_optimization": {"stage": config.zero_stage}}
    monitors = {
        f"{name}_monitor" if name == "csv" else name: {
            "enabled": True,
            "output_path": str(config.output_dir),
            "job_name": name,
        }
        for name in config.monitors
    }
    if "wandb" in monitors:
        monitors["wandb"] = {"enabled": True, "project": config.output_dir.name}
    bf16 = resolve_dtype(config) is torch.bfloat16
    if bf16:  # DeepSpeed would add up the chunks' gradients in bf16
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return {
        **settings,
        **monitors,
        # the batch is ours to cut; DeepSpeed only wants its arithmetic to come out
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
