"""Processes that work on lists of rows while this one runs the model; a row that kills or stalls one is one reject.

`concurrent.futures.ProcessPoolExecutor` cannot say which task killed a process, gives up on all of them then, and
leaves its processes behind when this one is killed; torch's DataLoader, too, ends with the first death.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from fanoise.process import settle_worker

Row = TypeVar("Row")
Result = TypeVar("Result")

# neither embedder nor catalogue need be pickled
_forking = threading.Lock()
_FORK = multiprocessing.get_context("fork")
_SECONDS_TO_DIE = 10.0
SECONDS = 120
"""After which a row is taken for endless: far more than any sound page or picture takes. A task has no more, unless
rows say that they wait for others: one that takes so long is done row by row anyway."""


def default_workers(cores: int, processes: int = 1) -> int:
    """For each of so many processes on a machine: one for each core, four at most; the model has the right of way."""
    return max(1, min(4, cores // processes))


def cores_of_this_process() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers(Generic[Row, Result]):
    """`number` processes that do `work` on what is submitted; with 0, this process does it at once.

    Where a process dies (killed for its memory, a fault in a decoder), another takes its place and does the rows of its
    task one by one; for a row that kills that one as well, the result is what `died(row, how)` says, where `how` goes
    on a sentence about its preparation: "ended the process (signal SIGKILL)". One that does not answer in time is
    killed: "took more than 120 s".

    Args:
        seconds: how long a task of these rows may take.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Row]], Result],
        number: int,
        *,
        died: Callable[[Row, str], Result],
        seconds: Callable[[Sequence[Row]], int] = lambda rows: SECONDS,
    ) -> None:
        self._work, self._died, self._seconds = work, died, seconds
        self._closed = False
        self._deaths = 0
        # forked here, before there are threads: a fork in between would copy the locks they hold
        self._processes = [_Process(work) for _ in range(number)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(number) if number else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closed = True
        for process in self._processes:
            process.end()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    @property
    def deaths(self) -> int:
        """How many processes have died, or had to be killed."""
        return self._deaths

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def submit(self, rows: Sequence[Row]) -> "Future[list[Result]]":
        """One result for all rows; after a death one for each. What `work` raises comes out of the future."""
        if self._threads is not None:
            return self._threads.submit(self._run, rows)
        done: Future[list[Result]] = Future()
        done.set_result([self._work(rows)])
        return done

    def _run(self, rows: Sequence[Row]) -> list[Result]:
        process = self._idle.get()
        try:
            try:
                return [process.do(rows, self._seconds(rows))]
            except _Dead:
                process = self._replaced(process)
            results = []
            for row in rows:
                try:
                    results.append(process.do([row], self._seconds([row])))
                except _Dead as death:
                    process = self._replaced(process)
                    results.append(self._died(row, str(death)))
            return results
        finally:
            self._idle.put(process)

    def _replaced(self, dead: "_Process") -> "_Process":
        if self._closed:
            raise RuntimeError("the workers have been ended")
        self._deaths += 1
        new = _Process(self._work)
        self._processes[self._processes.index(dead)] = new
        if self._closed:  # meanwhile
            new.end()
        return new


class _Dead(Exception):
    """The process died instead of answering; the message says how."""


class _Failure:
    """What `work` raised, and where."""

    def __init__(self, error: Exception) -> None:
        self.traceback = traceback.format_exc()
        try:
            self.error = ForkingPickler.loads(ForkingPickler.dumps(error))  # as the connection will do
        except Exception:  # an error need not survive the way to another process
            self.error = RuntimeError(f"{type(error).__name__}: {error}")


class _Process:
    def __init__(self, work: Callable[[Any], Any]) -> None:
        # a process forked by another thread in between would hold the other end as well, and hide this one's death
        with _forking:
            self._connection, theirs = _FORK.Pipe()
            self._process = _FORK.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child ignores it
            try:
                self._process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def do(self, rows: Sequence[Any], seconds: int) -> Any:
        try:
            self._connection.send(rows)
            if not _answers(self._connection, seconds):
                self.end()
                self._connection.close()
                raise _Dead(f"took more than {seconds} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            with _forking:  # whose start looks after children as well: of two that wait for one, one learns nothing
                self._process.join(_SECONDS_TO_DIE)
            if self._process.exitcode is None:  # it lives: the fault is ours, such as too many open files
                self.end()
                raise error if isinstance(error, OSError) else RuntimeError("a worker hung up") from error
            self._connection.close()
            raise _Dead(_how(self._process.exitcode)) from None
        if isinstance(answer, _Failure):
            answer.error.add_note(f"in a worker process:\n{answer.traceback}")
            raise answer.error
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.join(_SECONDS_TO_DIE)  # one that waits for a disk that is gone cannot be killed, only left


def _serve(work: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; this process is ended by its parent
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(19)  # a model whose threads wait for one that was interrupted loses more than a worker gains
    settle_worker(shared_memory=False)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        try:
            rows = connection.recv()
        except EOFError:
            return
        try:
            answer = work(rows)
        except Exception as error:
            answer = _Failure(error)
        connection.send(answer)


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: other workers keep the parent's end of our connection open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _how(exitcode: int) -> str:
    status = f"signal {signal.Signals(-exitcode).name}" if exitcode < 0 else f"exit status {exitcode}"
    return f"ended the process ({status})"


def _answers(connection: Connection, seconds: float) -> bool:
    """Whether there is an answer, or an end, in so many seconds.

    They are counted one by one: a clock would go on while this process is stopped (Ctrl-Z), and its workers with it.
    """
    while seconds > 0:
        if connection.poll(min(1, seconds)):
            return True
        seconds -= 1
    return False
