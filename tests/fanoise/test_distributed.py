"""One process, and two gloo processes with different numbers of rows."""

import json

import pytest
import torch

from fanoise.distributed import gather_rows, rank, row_offset, world_size
from tests.processes import run_processes

ROWS = {"uneven": (3, 1), "one has none": (0, 2), "even": (2, 2)}
PROCESS = """
import json, sys
import torch, torch.distributed as dist
from fanoise.distributed import gather_rows, rank, row_offset, world_size

torch.set_num_threads(1)
folder, me, cases = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=me, world_size=2)
answers = {"rank": rank(), "world_size": world_size()}
for name, counts in cases.items():
    rows = (torch.arange(2.0 * counts[me]).reshape(-1, 2) + 100 * me).requires_grad_()
    gathered = gather_rows(rows)
    numbers = gather_rows(torch.arange(counts[me]) + 2**60 * me)
    offset = row_offset(counts[me], rows.device)
    answers[name] = [gathered.tolist(), gathered.requires_grad, numbers.tolist(), offset]
print(json.dumps(answers))
dist.destroy_process_group()
"""


def test_one_process_is_a_no_op():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    assert (world_size(), rank(), row_offset(3, rows.device)) == (1, 0, 0)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    answers = run_processes(PROCESS, 2, tmp_path_factory.mktemp("distributed"), json.dumps(ROWS))
    assert [status for status, _ in answers] == [0, 0]
    return [json.loads(output.splitlines()[-1]) for _, output in answers]


def test_processes_know_their_rank(answers):
    assert [(answer["rank"], answer["world_size"]) for answer in answers] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("case", ROWS)
def test_rows_of_two_processes_arrive_everywhere_in_rank_order(answers, case):
    first, second = ROWS[case]
    expected = [[2.0 * i, 2.0 * i + 1] for i in range(first)] + [[100.0 + 2 * i, 101.0 + 2 * i] for i in range(second)]
    for answer in answers:
        rows, requires_grad, numbers, _ = answer[case]
        assert rows == expected
        assert not requires_grad
        assert numbers == [*range(first), *(2**60 + i for i in range(second))]  # whole numbers stay exact


@pytest.mark.parametrize("case", ROWS)
def test_offset_is_where_the_own_rows_start(answers, case):
    assert [answer[case][3] for answer in answers] == [0, ROWS[case][0]]
