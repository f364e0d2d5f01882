"""Tensors from one process to another through a pipe.

torch would put them into /dev/shm. Containers have 64 MB of that, a few batches; where it is full, the process that
prepares a batch dies, and its rows would be taken for damaged. The pipe is no slower: it needs no fresh pages.

What goes through is pickled, as by all of `multiprocessing`: both ends are processes of this program, forked from one
another, and no file or network reaches the pipe. What is stored or fetched is never pickled.
"""

import io
import pickle
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch


def send(connection: Connection, value: Any) -> None:
    """Send what can be pickled; the memory of arrays and tensors in it is not copied before."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    raw = [buffer.raw() for buffer in buffers]
    connection.send([part.nbytes for part in raw])
    for part in (stream.getbuffer(), *raw):
        connection.send_bytes(part)


def receive(connection: Connection) -> Any:
    """What the other end sends. Raises EOFError or OSError where there is none any more."""
    sizes = connection.recv()
    data = connection.recv_bytes()
    parts = [np.empty(size, np.uint8) for size in sizes]
    for part in parts:
        connection.recv_bytes_into(part.data)
    return pickle.loads(data, buffers=parts)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is not torch.Tensor:
            return NotImplemented
        try:
            return torch.from_numpy, (value.detach().numpy(),)
        except (TypeError, RuntimeError):  # a type that NumPy has not, or sparse
            return NotImplemented
