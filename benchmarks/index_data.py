"""Made-up embeddings for the index benchmarks: clustered unit vectors, block by block, the same for the same seed.

A vector is the centre of one of many topics plus noise whose spread falls off from dimension to dimension, in a rotated
basis, so that neighbours are worth finding and no index finds them all at once. A query is such a vector with a step in
one direction that all queries share and more noise: as with texts and images, queries lie beside the rows, not among
them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_TOPICS = 500
_FALL = 0.4
_BLOCK = 65_536


@dataclass(frozen=True)
class Synthetic:
    count: int
    dim: int
    seed: int = 0

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [≤ 65,536, D], unit rows."""
        for number, start in enumerate(range(0, self.count, _BLOCK)):
            yield self._draw(min(_BLOCK, self.count - start), stream=number + 2, query=False)

    def queries(self, count: int, *, stream: int = 1) -> np.ndarray:
        """float32 [Q, D], unit rows; others for another stream (0 or 1)."""
        return self._draw(count, stream=stream, query=True)

    def _draw(self, count: int, *, stream: int, query: bool) -> np.ndarray:
        shape = np.random.default_rng([self.seed, 0])
        topics = shape.standard_normal((_TOPICS, self.dim), dtype=np.float32)
        basis = np.linalg.qr(shape.standard_normal((self.dim, self.dim)))[0].astype(np.float32)
        step = shape.standard_normal(self.dim, dtype=np.float32)
        rng = np.random.default_rng([self.seed, 1, stream])
        spread = np.arange(1, self.dim + 1) ** -_FALL
        spread = (1.5 * spread * self.dim**0.5 / np.linalg.norm(spread)).astype(np.float32)  # longer than a topic
        noise = rng.standard_normal((count, self.dim), dtype=np.float32) * spread @ basis
        rows = topics[rng.integers(_TOPICS, size=count)] + noise
        if query:
            rows += 0.5 * step + 0.3 * rng.standard_normal((count, self.dim), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
