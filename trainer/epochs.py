"""The order in which a file's pairs are drawn: shuffled, every pair once an epoch, like apart from like.

Pairs that share a query, a positive or a group are a cluster: in one batch they would be each other's false negatives.
"""

import numpy as np

_TRIES = 64
"""Partners looked at to exchange one row with."""


class Epochs:
    """Draws of `size` pairs from the N pairs of a file. A batch takes one draw of it, or several.

    A cluster that has no more pairs than the epoch has batches is dealt out to as many batches as it has pairs; a
    larger one is spread evenly over all draws. A pair of several clusters is dealt with the largest; where it still
    meets another of the same cluster, it is exchanged with a row of another batch if a bounded search finds one.
    What is left of an epoch's pairs after its last whole draw waits for the next shuffle.
    """

    def __init__(self, keys: np.ndarray, size: int, seed: tuple[int, ...]) -> None:
        """From the file's [N, 3] keys (see `PairTable.keys`), N >= size."""
        self.draws = len(keys) // size
        """Draws of an epoch."""
        columns = [_clusters(values, none) for values, none in zip(keys.T, (None, None, 0), strict=True)]
        self.largest = [int(sizes.max(initial=1)) for _, sizes in columns]
        """How many pairs share the most frequent query, positive and group."""
        columns = [(cluster, sizes) for cluster, sizes in columns if len(sizes)]
        self._columns = [cluster for cluster, _ in columns]
        self._dealt = _largest(columns, len(keys))
        self._count, self._size, self._seed = len(keys), size, seed
        self._orders: dict[int, np.ndarray] = {}

    def rows(self, draw: int, batches: np.ndarray) -> np.ndarray:
        """[size] rows of a draw, counted over all epochs from 0.

        Args:
            batches: for every draw the batch that takes it, ascending; past its end each draw is a batch of its own.
        """
        epoch, place = divmod(draw, self.draws)
        if epoch not in self._orders:
            of_epoch = batches[epoch * self.draws : (epoch + 1) * self.draws]
            draws = np.unique(of_epoch, return_counts=True)[1]
            draws = np.append(draws, np.ones(self.draws - len(of_epoch), dtype=draws.dtype))
            self._orders[epoch] = self._order(epoch, draws)
            for old in list(self._orders)[:-2]:  # a batch may reach from one epoch into the next
                del self._orders[old]
        return self._orders[epoch][place * self._size : (place + 1) * self._size]

    def _order(self, epoch: int, draws: np.ndarray) -> np.ndarray:
        """The epoch's rows, batch by batch, where batch b takes `draws[b]` draws."""
        rng = np.random.default_rng([*self._seed, epoch])
        order = self._kept(rng.permutation(self._count).astype(np.int32), len(draws))
        cluster = self._dealt[order]
        places = np.flatnonzero(cluster >= 0)
        _, first, inverse, sizes = np.unique(
            cluster[places], return_index=True, return_inverse=True, return_counts=True
        )
        # large ones first: the batches of most draws, which alone have room at the end, are too few for them
        by_size = np.argsort((sizes.max(initial=0) - sizes[inverse]) * len(order) + first[inverse], kind="stable")
        order = np.concatenate([order[places[by_size]], order[cluster < 0]])
        begins = np.concatenate([[True], np.diff(inverse[by_size]) != 0, np.ones(len(order), dtype=bool)])
        crowd = int(sizes[sizes > len(draws)].sum())
        batch = _deal(draws, self._size, begins[: len(order)], crowd, rng)
        order = order[np.argsort(batch * len(order) + rng.permutation(len(order)))]
        _exchange(order, np.repeat(np.arange(len(draws)), draws * self._size), self._columns, rng)
        return order

    def _kept(self, order: np.ndarray, batches: int) -> np.ndarray:
        """A shuffle without the epoch's remainder, for which rows of too large clusters are taken first."""
        spare = self._count - self.draws * self._size
        if not spare:
            return order
        too_many = _occurrence(self._dealt[order]) >= batches
        return np.delete(order, np.argsort(too_many, kind="stable")[self._count - spare :])


def _clusters(values: np.ndarray, none: int | None) -> tuple[np.ndarray, np.ndarray]:
    """[N] the number of each row's cluster, -1 where no other row has its value; and the clusters' sizes."""
    found, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    shared = sizes > 1
    if none is not None:
        shared &= found != none
    return np.where(shared, np.cumsum(shared) - 1, -1)[inverse].astype(np.int32), sizes[shared]


def _largest(columns: list[tuple[np.ndarray, np.ndarray]], rows: int) -> np.ndarray:
    """[N] of each row's clusters the largest, numbered over all columns; -1 for a row without one."""
    dealt, most, start = np.full(rows, -1, dtype=np.int32), np.ones(rows, dtype=np.int32), 0
    for cluster, sizes in columns:
        size = np.where(cluster >= 0, sizes[cluster], 0)
        larger = size > most
        dealt[larger], most[larger] = cluster[larger] + start, size[larger]
        start += len(sizes)
    return dealt


def _occurrence(cluster: np.ndarray) -> np.ndarray:
    """How often each row's cluster came before the row; 0 for rows without one."""
    found = np.zeros(len(cluster), dtype=np.int32)
    rows = np.flatnonzero(cluster >= 0)
    rows = rows[np.argsort(cluster[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(cluster[rows], prepend=-1))
    found[rows] = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return found


def _deal(draws: np.ndarray, size: int, begins: np.ndarray, crowd: int, rng: np.random.Generator) -> np.ndarray:
    """The batch of each row of an epoch: one row to each batch that has room, round after round in a new order.

    No batch gets two of a cluster, but where so few have room at the end that a cluster is more than they are.

    Args:
        begins: where in the epoch's rows a cluster begins; clusters are in order of falling size.
        crowd: rows at the start whose clusters are larger than the number of batches. They are dealt to draws, so that
            a batch of two draws gets twice as many.
    """
    batch = np.resize(rng.permutation(np.repeat(np.arange(len(draws)), draws)), len(begins))
    room = draws * size - np.bincount(batch[:crowd], minlength=len(draws))
    start = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
    done = crowd
    for round_ in range(int(room.max())):
        turn = rng.permutation(np.flatnonzero(room > round_))
        # the cluster that the last round has begun goes on in other batches
        had = np.isin(turn, batch[start[done] : done])
        batch[done : done + len(turn)] = np.concatenate([turn[~had], turn[had]])
        done += len(turn)
    return batch


def _exchange(order: np.ndarray, batch: np.ndarray, clusters: list[np.ndarray], rng: np.random.Generator) -> None:
    """Exchange rows of `order`, in place, between batches that hold a cluster twice and need not."""
    starts = np.flatnonzero(np.diff(batch, prepend=-1))
    ends = np.append(starts[1:], len(batch))
    columns = []
    for cluster in clusters:
        avoidable = np.bincount(cluster + 1)[cluster + 1] <= len(starts)
        columns.append(np.where(avoidable, cluster, -1)[order])

    def alike(row: int, place: int) -> int:
        """How many of a cluster with `row` are in the batch of `place`, without the row in that place."""
        within = slice(starts[batch[place]], ends[batch[place]])
        return sum(
            int(np.count_nonzero(column[within] == column[row])) - int(column[place] == column[row])
            for column in columns
            if column[row] >= 0
        )

    tries = min(4 * len(order), len(order) // 8 + 16_384)
    while tries > 0:
        met = np.unique(np.concatenate([_met(column, batch) for column in columns] or [batch[:0]]))
        for row in met.tolist():
            for other in rng.integers(len(order), size=min(_TRIES, tries)).tolist():
                here = alike(row, row)
                if not here:
                    break
                tries -= 1
                if alike(row, other) + alike(other, row) < here + alike(other, other):
                    for values in (order, *columns):
                        values[[row, other]] = values[[other, row]]
        if not len(met):
            return


def _met(cluster: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """The rows that an earlier row of their batch shares a cluster with."""
    rows = np.flatnonzero(cluster >= 0)
    both = batch[rows].astype(np.int64) * (cluster.max(initial=0) + 1) + cluster[rows]
    by_both = np.argsort(both, kind="stable")
    return rows[by_both[1:][np.diff(both[by_both]) == 0]]
