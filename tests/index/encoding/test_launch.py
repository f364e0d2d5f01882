import pytest
import torch

from fanoise.errors import InputError
from index.encoding.launch import Launch, read_launch


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        ({}, Launch()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launch(rank=3, size=8, local_rank=1)),
        ({"RANK": "3"}, Launch()),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Launch(rank=1, size=2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Launch(rank=0, size=4, local_rank=0)),
        ({"RANK": "", "WORLD_SIZE": ""}, Launch()),
    ],
)
def test_launchers_tell_by_the_environment(environ, launch):
    assert read_launch(None, environ) == launch


def test_the_user_tells_by_an_option_that_goes_first():
    assert read_launch("2/8", {"RANK": "3", "WORLD_SIZE": "4"}) == Launch(rank=1, size=8)


@pytest.mark.parametrize("value", ["0/8", "9/8", "2", "2/", "/8", "a/b", "-1/8", "1/0"])
def test_what_is_no_place_is_refused(value):
    with pytest.raises(InputError, match="must be like 2/8"):
        read_launch(value, {})


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Launch(size=4, local_rank=i).device for i in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Launch(size=1, local_rank=1).device is None and Launch(size=4).device is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert Launch(size=4, local_rank=1).device is None
