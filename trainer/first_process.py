"""What the first process alone looks at or writes, with one outcome for all: else the others would wait for ever."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from fanoise.distributed import rank, world_size
from fanoise.errors import ArtifactError, CatalogError, ConfigError, InputError, TrainingError, one_line

KINDS = {kind.__name__: kind for kind in (ArtifactError, CatalogError, ConfigError, InputError, TrainingError)}


def on_first_process(action: Callable[[], Any], device: torch.device) -> Any:
    """What `action` returns on process 0, on all processes; it must fit into JSON.

    Raises: on process 0 what `action` raises; elsewhere an error of that kind and message, a TrainingError for what is
        none of ours.
    """
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if rank() == 0:
        try:
            answer = {"found": action()}
        except Exception as error:
            failure, answer = error, {"kind": type(error).__name__, "error": one_line(error)}
    answer = broadcast_json(answer, device)
    if failure is not None:
        raise failure
    if "error" in answer:
        raise KINDS.get(answer["kind"], TrainingError)(answer["error"])
    return answer["found"]


def broadcast_json(value: Any, device: torch.device) -> Any:
    """Process 0's value, on all processes."""
    if world_size() == 1:
        return value
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, src=0)
    data = data if rank() == 0 else torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(data, src=0)
    return json.loads(bytes(data.cpu().numpy()))
