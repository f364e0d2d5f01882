"""Shards through the model: what is known is copied, the rest is prepared in worker processes and encoded here."""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import torch

from fanoise.catalog import Item, RemoteImage
from fanoise.errors import InputError, one_line
from index.encoding.content import ContentKeys
from index.encoding.cut import Shard
from index.encoding.known import KnownRows
from index.encoding.lookup import Looked, Lookup
from index.encoding.prepare import Batch, Facts, Prepared, Preparer, died
from index.encoding.shard import EncodedShard, ShardOptions
from index.encoding.workers import SECONDS, Workers, cores_of_this_process, default_workers

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

A = TypeVar("A")
B = TypeVar("B")
_Task = tuple[EncodedShard, list[tuple[int, Item]] | None]
"""A batch of a shard's rows with their positions; None after the last."""

_LOOKED_AT_ONCE = 64
_FEW_ROWS = 256


def settle_workers(asked: int | None, rows: Iterator[A]) -> tuple[int, Iterator[A]]:
    """How many workers these rows are worth, unless it was said, and the rows."""
    if asked is not None:
        return asked, rows
    first = list(islice(rows, _FEW_ROWS + 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return default_workers(cores_of_this_process(), local) if len(first) > _FEW_ROWS else 0, chain(first, rows)


class Encoder:
    """Encodes one shard after the other.

    Args:
        batch_size: the most rows that go through the model at once.
        workers: processes that prepare rows; 0 for none but this one.
        index: the index folder, which the thumbnails go to directly.
        root: folder of the catalogue; image paths below it are stored relative to it.
        known: rows whose vectors are copied.
    """

    def __init__(
        self,
        embedder: "Embedder",
        options: ShardOptions,
        *,
        batch_size: int,
        workers: int,
        index: Path,
        root: Path,
        known: KnownRows | None = None,
    ) -> None:
        keys = ContentKeys(embedder.fingerprint)
        self._embedder, self._options, self._root = embedder, options, root
        self._batch_size, self._number = batch_size, workers
        given = options.vectors is not None
        self._prepare = Preparer(embedder, keys, index, signatures=options.signatures, vectors_given=given)
        self._lookup = Lookup(embedder, keys, None if given else known)
        self._stopped = False
        self.seconds = 0.0
        """How long encoding has taken,"""
        self.model_seconds = 0.0
        """and how long of it the model was at work."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # processes before threads, whose locks a fork would copy
            self._workers = stack.enter_context(
                Workers[tuple[int, Item], Prepared](self._prepare, self._number, died=died, seconds=_seconds)
            )
            self._threads = stack.enter_context(ThreadPoolExecutor(max(1, self._number)))
            stack.enter_context(_in_eval_mode(self._embedder))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)

    @property
    def deaths(self) -> int:
        """How many worker processes have died."""
        return self._workers.deaths

    def encode(
        self, shards: Iterable[Shard], *, advance: Callable[[int], object] = lambda rows: None
    ) -> Generator[EncodedShard]:
        """The shards with their results, in order; the next ones are read and prepared while the model is at work.

        Args:
            advance: called with the number of rows done since the last call.
        """
        self._stopped = False
        since, done = time.perf_counter(), 0
        try:
            for (shard, rows), prepared in _submitted(self._tasks(shards), self._submit, ahead=2 * self._number):
                if rows is not None and prepared is not None:
                    for part in prepared:
                        self._add(shard, part, dict(rows))
                    advance(len(rows))
                    done += len(rows)
                    continue
                self.seconds += time.perf_counter() - since
                yield shard
                advance(len(shard) - done)
                since, done = time.perf_counter(), 0
            self.seconds += time.perf_counter() - since
        finally:
            self._stopped = True

    def admitted(self, shard: Shard) -> list[Item]:
        """The rows that would go in, so far as that shows before the model sees them."""
        encoded = EncodedShard(shard, self._options, root=self._root, embedder_dim=self._embedder.dim)
        for part in self._workers.submit(list(encoded.contents().items())).result():
            encoded.add(part, None)
        return encoded.items

    def _tasks(self, shards: Iterable[Shard]) -> Iterator[_Task]:
        for shard, batches in _one_ahead(map(self._look_at, shards)):
            for rows in batches:
                yield shard, rows
            yield shard, None

    def _look_at(self, shard: Shard) -> tuple[EncodedShard, list[list[tuple[int, Item]]]]:
        """The shard with what is known of it, and the batches to be encoded. Runs in a thread."""
        encoded = EncodedShard(shard, self._options, root=self._root, embedder_dim=self._embedder.dim)
        contents = encoded.contents()
        positions = list(contents)
        groups = [positions[start : start + _LOOKED_AT_ONCE] for start in range(0, len(positions), _LOOKED_AT_ONCE)]

        def look(group: list[int]) -> list[tuple[int, Looked, Facts | None]]:
            if self._stopped:
                return []
            found = [(position, self._lookup(contents[position])) for position in group]
            return [(position, one, self._prepare.known_facts(one.known)) for position, one in found]

        looked = [one for group in self._threads.map(look, groups) for one in group]
        batches = encoded.plan(looked, self._batch_size)
        return encoded, [[(position, contents[position]) for position in batch] for batch in batches]

    def _submit(self, task: _Task) -> "Future[list[Prepared]] | None":
        _, rows = task
        return None if rows is None else self._workers.submit(rows)

    def _add(self, shard: EncodedShard, prepared: Prepared, rows: dict[int, Item]) -> None:
        """Encode what was prepared of these rows; where the device has no room for it, in halves."""
        if prepared.batch is None:
            shard.add(prepared, None)
            return
        start = time.perf_counter()
        try:
            vectors = embed(self._embedder, prepared.batch)
        except torch.OutOfMemoryError as error:
            half = len(prepared.positions) // 2
            if not half:
                raise InputError(
                    f"the device has no room for a single row ({one_line(error)}); lower the embedder's "
                    "max_pixels, or take a larger device"
                ) from None
        else:
            self.model_seconds += time.perf_counter() - start
            shard.add(prepared, vectors)
            return
        torch.cuda.empty_cache()
        if half < self._batch_size:
            self._batch_size = half
            print(f"note: out of device memory; going on with batches of {half}", file=sys.stderr)
        shard.add(replace(prepared, positions=[], facts=[]), None)
        for positions in (prepared.positions[:half], prepared.positions[half:]):
            for part in self._workers.submit([(position, rows[position]) for position in positions]).result():
                self._add(shard, part, rows)


def _seconds(rows: Sequence[tuple[int, Item]]) -> int:
    """How long these rows may take to prepare: URLs are fetched one after the other, each in its own time."""
    return SECONDS + math.ceil(sum(item.image.timeout_s for _, item in rows if isinstance(item.image, RemoteImage)))


@torch.inference_mode()
def embed(embedder: "Embedder", batch: Batch) -> np.ndarray:
    """A vector for each row of a batch, float32 [B, E]."""
    device = next(embedder.module.parameters()).device
    on_device = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return embedder.module(on_device).float().cpu().numpy()


@contextmanager
def _in_eval_mode(embedder: "Embedder") -> Iterator[None]:
    """Dropout off, whatever mode the model was left in."""
    training = [part for part in embedder.module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _submitted(
    tasks: Iterable[A], submit: Callable[[A], "Future[B] | None"], *, ahead: int
) -> Iterator[tuple[A, B | None]]:
    """Each task with its result, in order, while the next `ahead` are being worked on."""
    waiting: deque[tuple[A, Future[B] | None]] = deque()
    for task in tasks:
        waiting.append((task, submit(task)))
        if len(waiting) > ahead:
            task, future = waiting.popleft()
            yield task, None if future is None else future.result()
    for task, future in waiting:
        yield task, None if future is None else future.result()


def _one_ahead(values: Iterator[A]) -> Iterator[A]:
    """The values, of which the next is got in a thread while one is in use."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, values, end)
        while (value := following.result()) is not end:
            following = thread.submit(next, values, end)
            yield value  # type: ignore[misc]
