"""What an engine trains, as whole fp32 tensors by parameter name, whatever the ZeRO stage and number of processes.

Stage 0 keeps AdamW's state beside each parameter, stages 1 and 2 in one flat partition per process, stage 3 in a slice
of every parameter. DeepSpeed's per-parameter functions bridge the three, but for three gaps, each marked below: AdamW
has no state before its first step, a slice of ZeRO 3 may end beyond the tensor, and what the model computes with is a
copy of what the optimiser updates. All functions must be called by all processes.
"""

from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor
from torch.nn import Parameter

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's two running means, under torch's names."""


def trainable_parameters(engine: Any) -> dict[str, Parameter]:
    """By name; under ZeRO 3 they may be empty placeholders."""
    return {name: value for name, value in engine.module.named_parameters() if value.requires_grad}


def full_shape(parameter: Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def full_tensors(engine: Any, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of one kind (`WEIGHTS` or one of `MOMENTS`), gathered one after the other."""
    for name, parameter in trainable_parameters(engine).items():
        if _is_partitioned(parameter):
            if kind == WEIGHTS:
                yield name, safe_get_full_fp32_param(parameter)
            else:
                yield name, safe_get_full_optimizer_state(parameter, kind)
        else:
            yield name, parameter.detach() if kind == WEIGHTS else engine.optimizer.state[parameter][kind]


def set_full_tensor(engine: Any, parameter: Parameter, kind: str, value: Tensor) -> None:
    """The reverse; `value` is the same on every process. `refresh_model` must follow the last one of `WEIGHTS`."""
    if hasattr(parameter, "ds_id"):
        part = _own_part(parameter, value)
        if kind == WEIGHTS:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)
    elif _is_partitioned(parameter):
        if kind == WEIGHTS:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)
    else:
        target = parameter.data if kind == WEIGHTS else engine.optimizer.state[parameter][kind]
        target.copy_(value)


def refresh_model(engine: Any) -> None:
    """Copy the fp32 masters to what the model computes with; ZeRO 3 has done so parameter by parameter."""
    if hasattr(engine.optimizer, "update_lp_params"):
        engine.optimizer.update_lp_params()


def optimizer_steps(engine: Any) -> int:
    """AdamW's step count, which corrects the bias of its means. Parameters share it: all are updated at every step."""
    return max((int(state["step"]) for state in _base(engine).state.values()), default=0)


def set_optimizer_steps(engine: Any, steps: int) -> None:
    """Set the count. Makes AdamW's state where there is none, so that `set_full_tensor` can fill it."""
    optimizer, base = engine.optimizer, _base(engine)
    # ZeRO 3 takes its partitions out of the groups between two steps
    partitions = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    for tensor in partitions or [tensor for group in base.param_groups for tensor in group["params"]]:
        if not base.state[tensor]:
            base.state[tensor] |= {"step": torch.tensor(0.0), **{kind: torch.zeros_like(tensor) for kind in MOMENTS}}
        base.state[tensor]["step"].fill_(steps)
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):  # ZeRO 1 and 2 do this after their first step
        optimizer._lazy_init_hp_params_optimizer_state()


def _base(engine: Any) -> torch.optim.Optimizer:
    """torch's optimiser inside DeepSpeed's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _is_partitioned(parameter: Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This process's slice, padded as DeepSpeed pads it; its own full setter fails where sizes do not divide."""
    size = parameter.ds_tensor.numel()
    part = value.flatten()[torch.distributed.get_rank() * size :][:size]
    return torch.nn.functional.pad(part, (0, size - part.numel()))
