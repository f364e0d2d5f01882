import threading
import time
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from index.dispatcher import Dispatcher


def unit_rows(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def flat():
    index = faiss.IndexFlatIP(16)
    index.add(unit_rows(500))
    return index


class Counting:
    """Calls of an index, and by which threads."""

    def __init__(self, index, seconds=0.0):
        self.index, self.seconds = index, seconds
        self.sizes, self.ks, self.threads = [], [], set()

    def __call__(self, queries, k):
        self.sizes.append(len(queries))
        self.ks.append(k)
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        return self.index.search(queries, k)


def test_many_threads_get_what_direct_calls_give(flat):
    search = Counting(flat, 0.001)
    dispatcher = Dispatcher(search)
    asked = [(unit_rows(1 + i % 3, seed=i), 1 + i % 7) for i in range(300)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: dispatcher.search(*one), asked))
    dispatcher.close()
    for (queries, k), (scores, rows) in zip(asked, answers, strict=True):
        expected_scores, expected_rows = flat.search(queries, k)
        assert np.array_equal(rows, expected_rows)
        assert np.allclose(scores, expected_scores, atol=1e-6)
    assert len(search.threads) == 1 and threading.get_ident() not in search.threads
    assert sum(search.sizes) == sum(len(queries) for queries, _ in asked)
    assert len(search.sizes) < 250  # some were joined


def test_what_waits_is_joined_up_to_the_most_and_only_for_equal_k(flat):
    search = Counting(flat, 0.1)
    dispatcher = Dispatcher(search, window_s=0.3, most=8)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda i: dispatcher.search(unit_rows(1, seed=i), 3 if i % 2 else 4), range(12)))
    dispatcher.close()
    assert max(search.sizes) <= 8
    assert sum(size for size, k in zip(search.sizes, search.ks, strict=True) if k == 3) == 6
    assert len(search.sizes) <= 6


def test_who_is_alone_does_not_wait_for_others(flat):
    dispatcher = Dispatcher(flat.search, window_s=600)
    done = threading.Event()

    def ask():
        for seed in range(3):
            dispatcher.search(unit_rows(1, seed=seed), 3)
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    assert done.wait(timeout=60)
    dispatcher.close()


def test_an_error_reaches_who_asked_and_nobody_else(flat):
    search = Counting(flat, 0.1)
    dispatcher = Dispatcher(search, window_s=0.2)

    def ask(i):
        return dispatcher.search(unit_rows(1, dim=15 if i == 3 else 16, seed=i), 5)

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(ask, i) for i in range(6)]
    for i, future in enumerate(futures):
        if i == 3:
            assert isinstance(future.exception(), AssertionError)  # of faiss, for another dim
        else:
            assert np.array_equal(future.result()[1], flat.search(unit_rows(1, seed=i), 5)[1])
    dispatcher.close()
    assert len(search.sizes) > 3  # the joined call failed, so each of its requests was tried alone


def test_closing_answers_what_was_asked_and_refuses_the_rest(flat):
    dispatcher = Dispatcher(Counting(flat, 0.05))
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(dispatcher.search, unit_rows(1, seed=i), 2) for i in range(4)]
        time.sleep(0.02)
        dispatcher.close()
    assert all(future.result()[1].shape == (1, 2) for future in futures)
    dispatcher.close()
    with pytest.raises(ValueError, match="closed"):
        dispatcher.search(unit_rows(1), 2)
    assert not any(thread.name == "index-search" for thread in threading.enumerate())
