"""Tables of pairs that one process of each machine reads, and the others there open."""

from collections.abc import Callable

from fanoise.distributed import world_size
from trainer.outcomes import on_every_process, once_per_machine
from trainer.pair_table import Handle, PairTable


def shared_tables(read: Callable[[], list[PairTable]]) -> list[PairTable]:
    """The tables that `read` returns, read by one process of each machine and opened by the others there.

    Raises: as `once_per_machine`.
    """
    if world_size() == 1:
        return read()
    tables: list[PairTable] = []

    def handles() -> list[Handle]:
        tables.extend(read())
        return [table.handle for table in tables]

    found = once_per_machine(handles)
    # on every process, for the writer has to keep its tables until all are open
    return on_every_process(lambda: tables or _opened(found) or read())


def _opened(handles: list[Handle]) -> list[PairTable]:
    """Empty where the writer's files cannot be reached, though it is on this machine: no /proc, another user."""
    try:
        return [PairTable.open(Handle(*handle)) for handle in handles]
    except OSError:
        return []
