"""Three processes of one machine, started without a launcher's variables."""

import json
import signal
from pathlib import Path

import pytest

from tests.processes import run_processes

CASES = ("together", "slow", "apart", "closed", "fault", "damaged", "lost")
"""`slow`: reading takes longer than the run's process group waits. `apart`: the second and third are on another
machine. `closed`: the third may not open what the first wrote. `damaged`: it may, and finds something else."""
PROCESS = """
import json, os, signal, sys, time
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from trainer import outcomes
from trainer.pair_table import PairTable
from trainer.pairs import read_pairs
from trainer.shared_tables import shared_tables

torch.set_num_threads(1)
folder, me, cases = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=me, world_size=3)
dist.barrier()
dist.distributed_c10d._set_pg_timeout(timedelta(seconds=6), dist.group.WORLD)  # not before all have started

def read():
    if case in ("slow", "closed"):
        time.sleep(8 if case == "slow" else 1)
    with (folder / f"{case}.readers").open("a") as file:
        file.write(f"{me}\\n")
    if case == "lost":
        os.kill(os.getpid(), signal.SIGKILL)
    return [read_pairs(folder / name) for name in ("pairs.jsonl", "broken.jsonl" if case == "fault" else "more.jsonl")]

def refuse(handle):
    raise PermissionError(13, "Permission denied")

def find_damage(handle):
    raise ValueError("cannot mmap an empty file")

machine_of, open_table = outcomes._machine, PairTable.open
for case in cases:
    outcomes._machine = (lambda: "another") if case == "apart" and me > 0 else machine_of
    PairTable.open = {"closed": refuse, "damaged": find_damage}.get(case, open_table) if me == 2 else open_table
    try:
        first, second = shared_tables(read)
        answer = [[pair.query.text for pair in first], str(second[0].positive.image), first.keys.tolist(),
                  second.equal_negatives, [first.names_images, second.names_images], len(second.sample(1, seed=0)),
                  sorted(map(int, (folder / f"{case}.readers").read_text().split()))]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    with (folder / f"answers-{me}.jsonl").open("a") as file:  # a full pipe would hold up everyone
        file.write(json.dumps(answer) + "\\n")
os._exit(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    write(folder / "pairs.jsonl", [{"query_text": f"q{n}", "positive_text": f"p{n}"} for n in range(5000)])
    more = {"query_text": "q", "positive_text": "p", "positive_image": "a.png", "negative_text": ["p", "n"]}
    write(folder / "more.jsonl", [{**more, "negative_image": ["a.png", None]}] * 3)
    write(folder / "broken.jsonl", [more, {"query_text": "q"}])
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, list]:
    """What each process answered in each case, which is nothing from the first where it is lost."""
    ended = run_processes(PROCESS, 3, folder, json.dumps(CASES))
    assert [status for status, _ in ended] == [-signal.SIGKILL, 0, 0]
    files = [folder / f"answers-{number}.jsonl" for number in range(3)]
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return {case: [each[number] for each in lines if len(each) > number] for number, case in enumerate(CASES)}


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def readers(folder: Path, case: str) -> list[int]:
    """The processes that read the files."""
    return sorted(map(int, (folder / f"{case}.readers").read_text().split()))


@pytest.mark.parametrize(
    ("case", "expected"), [("together", [0]), ("slow", [0]), ("apart", [0, 1]), ("closed", [0, 2])]
)
def test_a_machine_s_first_process_reads_and_all_have_the_same_tables(folder, answers, case, expected):
    assert readers(folder, case) == expected
    first, second, third = answers[case]
    assert first == second == third
    queries, image, keys, equal_negatives, names_images, sampled, read_before = first
    assert read_before == expected, "nobody goes on, to wait elsewhere, while another still reads"
    assert queries == [f"q{number}" for number in range(5000)]
    assert (image, equal_negatives, names_images, sampled) == (str(folder / "a.png"), 3, [False, True], 1)
    assert len(keys) == 5000 and len({query for query, _, _ in keys}) == 5000


def test_a_fault_that_one_process_finds_is_everyone_s(folder, answers):
    assert readers(folder, "fault") == [0]
    message = f"{folder}/broken.jsonl: row 2: fill positive_text, positive_image or both"
    assert answers["fault"] == [["CatalogError", message]] * 3


def test_a_table_that_one_process_cannot_open_ends_all(answers):
    message = "cannot mmap an empty file"
    assert answers["damaged"] == [["TrainingError", message], ["TrainingError", message], ["ValueError", message]]


def test_nobody_waits_for_a_process_that_dies_while_it_reads(folder, answers):
    assert readers(folder, "lost") == [0]
    message = "another process was lost; it may say why itself"
    assert answers["lost"] == [["TrainingError", message]] * 2
