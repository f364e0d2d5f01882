"""One thread that searches for many: what they ask for within a moment becomes one call."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Answer = tuple[np.ndarray, np.ndarray]

_WINDOW_S = 0.0002
_MOST_QUERIES = 1024


@dataclass(frozen=True)
class _Request:
    queries: np.ndarray
    k: int
    answer: "Future[Answer]" = field(default_factory=Future)


class Dispatcher:
    """Calls `search` in a thread of its own, for any number of callers."""

    def __init__(self, search: Search, *, window_s: float = _WINDOW_S, most: int = _MOST_QUERIES) -> None:
        """
        Args:
            search: queries float32 [Q, D] and k in, scores and rows [Q, k] out; only ever called by one thread.
            window_s: how long the first request of a call waits for others, if there were others the last time.
            most: queries of a call at which nobody is waited for any more.
        """
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        # the thread knows nothing of this object, so that its owner can be collected, which closes it
        self._thread = threading.Thread(
            target=_serve, args=(self._requests, search, window_s, most), name="index-search", daemon=True
        )
        self._thread.start()

    def search(self, queries: np.ndarray, k: int) -> Answer:
        """Scores and rows [Q, k] of these queries, once their turn has come. Raises what `search` raises for them."""
        request = _Request(queries, k)
        with self._lock:
            if self._is_closed:
                raise ValueError("the index has been closed")
            self._requests.put(request)
        return request.answer.result()

    def close(self) -> None:
        """Answer what has been asked, and end the thread. Later searches are an error."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._requests.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _serve(requests: "queue.SimpleQueue[_Request | None]", search: Search, window_s: float, most: int) -> None:
    is_busy = False
    while (first := requests.get()) is not None:
        # a caller who is alone need not wait; others, while a call is under way, line up by themselves
        batch, is_last = _gather(requests, first, window_s if is_busy else 0.0, most)
        is_busy = len(batch) > 1
        # only equal k are joined: the best of more need not begin with the best of fewer
        for k, group in groupby(sorted(batch, key=lambda request: request.k), key=lambda request: request.k):
            _answer(list(group), k, search)
        del first, batch, group  # nothing of the callers is kept while the thread waits
        if is_last:
            return


def _gather(
    requests: "queue.SimpleQueue[_Request | None]", first: _Request, window_s: float, most: int
) -> tuple[list[_Request], bool]:
    """Requests for the next call, and whether they are the last ever."""
    batch, count = [first], len(first.queries)
    end = time.monotonic() + window_s
    while count < most:
        try:
            request = requests.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        if request is None:
            return batch, True
        batch.append(request)
        count += len(request.queries)
    return batch, False


def _answer(group: Sequence[_Request], k: int, search: Search) -> None:
    try:
        scores, rows = search(np.concatenate([request.queries for request in group]), k)
    except Exception as error:
        if len(group) == 1:
            group[0].answer.set_exception(error)
            return
        for request in group:  # who is to blame? the others get their answers
            _answer([request], k, search)
        return
    start = 0
    for request in group:
        stop = start + len(request.queries)
        request.answer.set_result((scores[start:stop], rows[start:stop]))
        start = stop
