"""One process, and three gloo processes whose own group gives up after six seconds."""

import json

import pytest

from fanoise.errors import ConfigError
from tests.processes import run_processes
from trainer.outcomes import on_every_process, on_first_process, once_per_machine

PROCESS = """
import json, os, sys, threading, time
from datetime import timedelta
import torch, torch.distributed as dist
from fanoise.errors import CatalogError
from trainer import outcomes
from trainer.outcomes import on_every_process, on_first_process, once_per_machine

torch.set_num_threads(1)
folder, me = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=me, world_size=3)
dist.barrier()
dist.distributed_c10d._set_pg_timeout(timedelta(seconds=6), dist.group.WORLD)  # not before all have started

def refuse(error):
    raise error

def late(value):
    time.sleep(8)
    return value

def outcome(call):
    try:
        return call()
    except Exception as error:
        return [type(error).__name__, str(error)]

answers = {
    "first, late": outcome(lambda: on_first_process(lambda: late({1: [me, None]}))),
    "first refuses": outcome(lambda: on_first_process(lambda: refuse(CatalogError(f"a.csv of {me}: no rows")))),
    "first breaks": outcome(lambda: on_first_process(lambda: refuse(IndexError(f"list {me}\\nout of range")))),
    "machine": outcome(lambda: once_per_machine(lambda: me)),
    "every, third late": outcome(lambda: on_every_process(lambda: late(me) if me == 2 else me)),
    "every, of a kind that cannot be sent": outcome(lambda: str(type(on_every_process(threading.Lock)))),
    "second refuses": outcome(lambda: on_every_process(lambda: refuse(CatalogError("b.csv")) if me == 1 else me)),
}
outcomes._machine = lambda: "third" if me == 2 else "another"
answers["machines"] = outcome(lambda: once_per_machine(lambda: me))
answers["third machine refuses"] = outcome(
    lambda: once_per_machine(lambda: refuse(CatalogError("c.csv")) if me == 2 else me)
)
os.environ["GLOO_SOCKET_IFNAME"] = "nothere"
answers["no way"] = outcome(lambda: on_first_process(lambda: 1))
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
if me != 1:
    answers["second is gone"] = outcome(lambda: on_every_process(lambda: me))
print(json.dumps(answers))
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("outcomes")
    answers = run_processes(PROCESS, 3, folder)
    assert [status for status, _ in answers] == [0, 0, 0]
    return [json.loads(output) for _, output in answers]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("first, late", [{"1": [0, None]}] * 3),
        ("first refuses", [["CatalogError", "a.csv of 0: no rows"]] * 3),
        (
            "first breaks",  # what is none of ours keeps its kind where it was raised, for the traceback
            [["IndexError", "list 0\nout of range"], *[["TrainingError", "list 0"]] * 2],
        ),
        ("machine", [0, 0, 0]),
        ("machines", [0, 0, 2]),
        ("third machine refuses", [["CatalogError", "c.csv"]] * 3),
        ("every, third late", [0, 1, 2]),
        ("every, of a kind that cannot be sent", ["<class '_thread.lock'>"] * 3),
        ("second refuses", [["CatalogError", "b.csv"]] * 3),
    ],
)
def test_all_processes_have_one_outcome(answers, case, expected):
    assert [each[case] for each in answers] == expected


def test_a_process_that_is_gone_is_missed_in_the_run_s_own_time(answers):
    first, second, third = answers
    assert first["second is gone"] == third["second is gone"]
    assert first["second is gone"] == ["TrainingError", "another process was lost; it may say why itself"]
    assert "second is gone" not in second


def test_processes_that_cannot_reach_each_other_are_told_the_variable(answers):
    for each in answers:
        kind, message = each["no way"]
        assert kind == "TrainingError" and "nothere" in message and "set GLOO_SOCKET_IFNAME" in message


@pytest.mark.parametrize("kind", [on_first_process, once_per_machine, on_every_process])
def test_one_process_is_a_plain_call(kind):
    value = object()
    assert kind(lambda: value) is value

    def refuse() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        kind(refuse)
