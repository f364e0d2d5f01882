"""GradCache (arXiv 2101.06983) on a DeepSpeed engine, exact under every ZeRO stage.

The loss sees the whole batch, the model only chunks of it. Embeddings are computed without a graph, gathered from all
processes, the loss gives their gradients, and each chunk is computed again to carry its gradient to the parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fanoise.distributed import gather_rows, row_offset, world_size

ModelBatch = dict[str, Tensor]
LossFunction = Callable[[dict[str, Tensor]], Tensor]
_IDLE = ""
"""The side of a call that only keeps the processes in step; its gradient is zero."""


@dataclass(frozen=True)
class Side:
    """One side of this process's pairs, cut into chunks."""

    chunks: list[ModelBatch]
    """Anywhere; one at a time is moved to the engine's device."""
    rows: Tensor | None = None
    """[B] of the side's rows, which each row of the chunks is; none where they are in order."""

    def in_order(self, embeddings: Tensor) -> Tensor:
        """[B, D] of the chunks, in the order of the side's rows."""
        if self.rows is None:
            return embeddings
        return torch.empty_like(embeddings).index_copy_(0, self.rows.to(embeddings.device), embeddings)

    def by_chunk(self, rows: Tensor) -> Tensor:
        """The inverse of `in_order`."""
        return rows if self.rows is None else rows[self.rows.to(rows.device)]


def gradcache_backward(
    engine: Any,
    sides: dict[str, Side],
    loss_of: LossFunction,
    *,
    frozen: Callable[[ModelBatch], ModelBatch] | None = None,
) -> Tensor:
    """Accumulate the exact gradient of `loss_of` in the engine; the caller then calls `engine.step()`.

    Args:
        sides: by name ("query", ...). Every process has the same sides and at least one chunk; how many, and how many
            rows, may differ.
        loss_of: from the gathered embeddings of each side, [rows of all processes, D], to a scalar that is the same
            on every process.
        frozen: works out of a chunk what no trained weight has a part in, and leaves what it has no part in as it is.
            It is called once for each chunk of a side; what it gave waits in the CPU's memory for the second pass.
    Returns: the loss, detached.
    """
    calls = [(name, chunk) for name, side in sides.items() for chunk in side.chunks]
    # ZeRO communicates in every call: all processes must make equally many, in the same order.
    most_calls, most_chunks = _most(len(calls), max(len(side.chunks) for side in sides.values()), engine.device)
    calls += [(_IDLE, calls[0][1])] * (most_calls - len(calls))
    # A single chunk's graph fits in memory as it is, and keeping it saves the second forward.
    keep_graph = most_chunks <= 1
    states, outputs = [], []
    for number, (name, chunk) in enumerate(calls):
        inputs = _moved(chunk, engine.device)
        if frozen is not None:
            with torch.no_grad():
                found = frozen(inputs)
            if not keep_graph and found is not inputs:
                # a copy that does not block would be to pinned memory, which PyTorch never gives back
                calls[number] = name, {key: chunk[key] if key in chunk else found[key].cpu() for key in found}
            inputs = found
        states.append(_rng_state())  # past the masks of what is frozen
        with torch.set_grad_enabled(keep_graph):
            outputs.append(engine(inputs))

    gathered, own = {}, {}
    for name, side in sides.items():
        rows = [output.detach() for (owner, _), output in zip(calls, outputs, strict=True) if owner == name]
        local = side.in_order(torch.cat(rows)) if rows else outputs[0].new_zeros((0, outputs[0].shape[1]))
        gathered[name] = gather_rows(local).requires_grad_()
        start = row_offset(local.shape[0], local.device)
        own[name] = slice(start, start + local.shape[0])
    gathered = {name: embeddings for name, embeddings in gathered.items() if len(embeddings)}
    loss = loss_of(gathered)
    gradients = dict(zip(gathered, torch.autograd.grad(loss, list(gathered.values())), strict=True))
    by_chunk = {}
    for name, gradient in gradients.items():
        sizes = [output.shape[0] for (owner, _), output in zip(calls, outputs, strict=True) if owner == name]
        # DeepSpeed averages over processes, the loss does not: it is already that of the whole batch
        by_chunk[name] = iter((sides[name].by_chunk(gradient[own[name]]) * world_size()).split(sizes))
    shares = [
        torch.zeros_like(output) if name == _IDLE else next(by_chunk[name])
        for (name, _), output in zip(calls, outputs, strict=True)
    ]

    def carried(number: int, embeddings: Tensor) -> Tensor:
        """The scalar whose gradient is this call's share of the loss's."""
        return (embeddings * shares[number]).sum()

    if keep_graph:
        # in one pass: ZeRO 3 adds a backward pass to the one before only where a forward pass came between, else it
        # silently overwrites the gradient
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(sum(carried(number, output) for number, output in enumerate(outputs)), scale_wrt_gas=False)
        return loss.detach()
    after = _rng_state()
    for number, (_, chunk) in enumerate(calls):
        _set_rng_state(states[number])  # the same dropout masks as in the first pass
        share = carried(number, engine(_moved(chunk, engine.device)))
        # Without the boundary, ZeRO 2 reduces after every chunk and is silently wrong.
        engine.set_gradient_accumulation_boundary(number == len(calls) - 1)
        engine.backward(share, scale_wrt_gas=False)
    _set_rng_state(after)
    return loss.detach()


def _most(calls: int, chunks: int, device: torch.device) -> tuple[int, int]:
    """The largest of each over all processes."""
    if world_size() == 1:
        return calls, chunks
    most = torch.tensor([calls, chunks], device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most[0]), int(most[1])


def _moved(chunk: ModelBatch, device: torch.device) -> ModelBatch:
    return {key: value.to(device, non_blocking=True) for key, value in chunk.items()}


def _rng_state() -> tuple[Tensor, ...]:
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state()) if torch.cuda.is_available() else (cpu,)


def _set_rng_state(state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
