import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch

import index.encoding.workers
from fanoise.errors import InputError
from index.encoding.workers import Workers, _answers, default_workers

ROOT = Path(__file__).parents[3]


def squares(rows):
    return [row * row for row in rows]


def died(row, how):
    return [f"{row} {how}"]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_results_are_those_of_the_function(number):
    with Workers(squares, number, died=died) as workers:
        futures = [workers.submit([i, i + 1]) for i in range(20)]
        assert [future.result() for future in futures] == [[[i * i, (i + 1) ** 2]] for i in range(20)]
        assert workers.deaths == 0


TENSORS = {
    "pixels": torch.arange(3_000_000, dtype=torch.float32),
    "turned": torch.arange(12).reshape(3, 4).T,
    "half": torch.arange(5, dtype=torch.bfloat16),
    "mask": torch.arange(5) > 2,
    "one": torch.tensor(7),
    "none": torch.empty(0, 3),
    "text": "a",
}


def test_tensors_come_through_whole_and_not_by_shared_memory(monkeypatch):
    """Containers have 64 MB of that."""

    def full(*args, **options):
        os._exit(77)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    with Workers(lambda _: TENSORS, 2, died=died) as workers:
        [result] = workers.submit([0]).result()
        assert workers.deaths == 0
    assert list(result) == list(TENSORS)
    for name, value in result.items():
        assert type(value) is type(TENSORS[name])
        if name != "text":
            assert value.dtype == TENSORS[name].dtype and torch.equal(value, TENSORS[name])
    result["pixels"][0] = 5  # it may be written to, as one of this process


def test_large_tasks_do_not_wait_for_a_busy_worker():
    reader, writer = os.pipe()
    with Workers(lambda rows: [os.read(reader, 1), len(rows[0])][1], 1, died=died) as workers:
        futures = []
        submit = threading.Thread(
            target=lambda: futures.extend(workers.submit([bytes(4_000_000)]) for _ in range(3)), daemon=True
        )
        submit.start()
        submit.join(timeout=60)  # the worker does nothing until it is told to
        assert not submit.is_alive() and not any(future.done() for future in futures)
        os.write(writer, b"abc")
        assert [future.result() for future in futures] == [[4_000_000]] * 3
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("number", [0, 1])
def test_what_the_function_raises_is_raised_here(number):
    def refuse(rows):
        raise InputError("no such thing")

    with Workers(refuse, number, died=died) as workers:
        with pytest.raises(InputError, match="no such thing") as caught:
            workers.submit([1]).result()
        assert number == 0 or "in refuse" in caught.value.__notes__[0]
        assert workers.deaths == 0


def test_an_error_that_cannot_be_sent_is_told_by_its_name():
    class LocalError(Exception):
        pass

    def refuse(rows):
        raise LocalError("of this test")

    with Workers(refuse, 1, died=died) as workers, pytest.raises(RuntimeError, match="LocalError: of this test"):
        workers.submit([1]).result()


def test_a_row_that_kills_its_process_is_the_only_one_lost():
    def work(rows):
        if 13 in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        if 17 in rows:
            os._exit(3)
        return squares(rows)

    with Workers(work, 2, died=died) as workers:
        futures = [workers.submit(list(range(start, start + 5))) for start in (0, 10, 15, 20)]
        first, second, third, fourth = (future.result() for future in futures)
        assert first == [[0, 1, 4, 9, 16]]
        assert second == [[100], [121], [144], ["13 ended the process (signal SIGKILL)"], [196]]
        assert third == [[225], [256], ["17 ended the process (exit status 3)"], [324], [361]]
        assert fourth == [[400, 441, 484, 529, 576]]
        assert workers.deaths == 4
        assert workers.submit([2]).result() == [[4]]


def test_an_endless_row_is_the_only_one_lost(monkeypatch):
    stuck, tell = os.pipe()
    limits = []

    def work(rows):
        if 13 in rows:
            os.write(tell, b"x")
            threading.Event().wait()
        return squares(rows)

    def answers(connection, seconds):  # the time is up as soon as the worker has come to that row
        limits.append(seconds)
        ready = wait([connection, stuck])
        return stuck not in ready or not os.read(stuck, 1)

    monkeypatch.setattr(index.encoding.workers, "_answers", answers)
    with Workers(work, 1, died=died, seconds=lambda rows: 100 + 20 * len(rows)) as workers:
        [first] = workers.pids
        assert workers.submit([12, 13, 14]).result() == [[144], ["13 took more than 120 s"], [196]]
        assert limits == [160, 120, 120, 120]
        assert workers.deaths == 2
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        assert workers.submit(list(range(20, 30))).result() == [squares(range(20, 30))]
        assert limits[-1] == 300
    os.close(stuck)
    os.close(tell)


def test_an_answer_is_waited_for_so_long_and_no_longer():
    ours, theirs = Pipe()
    with ours, theirs:
        assert not _answers(ours, 0.01)
        theirs.send(1)
        assert _answers(ours, 60)
        assert ours.recv() == 1
        theirs.close()
        assert _answers(ours, 60)  # the end


def test_a_worker_killed_from_outside_loses_no_row():
    reader, writer = os.pipe()

    def slowly(rows):
        os.write(writer, b"x")
        time.sleep(0.3)
        return squares(rows)

    with Workers(slowly, 1, died=died) as workers:
        future = workers.submit([1, 2, 3])
        os.read(reader, 1)  # it is at work
        os.kill(workers.pids[0], signal.SIGKILL)
        assert future.result() == [[1], [4], [9]]
        assert workers.deaths == 1
    os.close(reader)
    os.close(writer)


def test_no_process_is_left():
    with Workers(squares, 2, died=died) as workers:
        pids = workers.pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_ending_does_not_wait_for_what_is_being_done():
    start = time.perf_counter()
    with Workers(lambda rows: time.sleep(60), 2, died=died) as workers:
        for _ in range(5):
            workers.submit([1])
        time.sleep(0.1)
    assert time.perf_counter() - start < 20


PARENT = """
import signal, sys, time
from index.encoding.workers import Workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits none
with Workers(lambda rows: time.sleep(60), 2, died=None) as workers:
    print(*workers.pids, flush=True)
    workers.submit([1])
    {then}
"""


def start(then):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    return process, [int(pid) for pid in process.stdout.readline().split()]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pids):
    deadline = time.monotonic() + 30
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, "workers are left behind"
        time.sleep(0.1)


def test_workers_end_with_a_parent_that_is_killed():
    process, pids = start("time.sleep(60)")
    process.kill()
    process.communicate()
    wait_until_gone(pids)


def test_ctrl_c_ends_all_with_one_traceback():
    process, pids = start("time.sleep(60)")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.count("KeyboardInterrupt") == 1
    wait_until_gone(pids)


def test_default_workers_are_as_many_as_cores_up_to_four():
    assert [default_workers(cores) for cores in (1, 2, 3, 4, 5, 64)] == [1, 2, 3, 4, 4, 4]
    assert [default_workers(16, processes) for processes in (1, 4, 8, 16, 32)] == [4, 4, 2, 1, 1]


def test_workers_let_the_model_go_first():
    with Workers(lambda rows: os.nice(0), 1, died=None) as workers:
        assert workers.submit([1]).result() == [19]


def test_a_death_shows_though_others_are_being_replaced():
    """A process forked while another's pipe is open on both ends would keep that pipe from closing."""

    def work(rows):
        if rows != [0]:
            os._exit(3)
        return 0

    with Workers(work, 4, died=died) as workers:
        futures = [workers.submit([1, 2, 3]) for _ in range(24)]
        for future in futures:
            assert future.result(timeout=60) == [[f"{row} ended the process (exit status 3)"] for row in (1, 2, 3)]
