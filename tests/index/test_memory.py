import pytest

import index.memory
from index.memory import free_memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up /proc and /sys; returns a function that writes a file of them."""

    def write(name: str, content: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    write("meminfo", "MemTotal:  1000 kB\nMemAvailable:   800 kB\n")
    write("cgroup", "")
    monkeypatch.setattr(index.memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(index.memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(index.memory, "_MOUNT", tmp_path / "sys")
    return write


def test_without_groups_the_machine_decides(machine):
    assert free_memory() == 800 * 1024


@pytest.mark.parametrize(("limit", "free"), [("max", 800 * 1024), ("500000", 500000 - 300000 + 1000)])
def test_a_control_group_lowers_it_but_for_its_caches(machine, limit, free):
    machine("cgroup", "0::/app/web\n")
    machine("sys/app/memory.max", limit)
    machine("sys/app/memory.current", "300000")
    machine("sys/app/memory.stat", "anon 299000\ninactive_file 1000\n")
    machine("sys/app/web/memory.max", "max")
    machine("sys/app/web/memory.current", "5")
    machine("sys/app/web/memory.stat", "inactive_file 0\n")
    assert free_memory() == free


def test_a_container_sees_its_own_group_at_the_root_and_the_hosts_path(machine):
    machine("cgroup", "4:memory:/docker/0123\n3:cpu:/docker/0123\n")
    machine("sys/memory/memory.limit_in_bytes", "600000")
    machine("sys/memory/memory.usage_in_bytes", "100000")
    machine("sys/memory/memory.stat", "total_inactive_file 0\n")
    assert free_memory() == 500000


def test_a_machine_that_says_nothing_has_no_limit(machine, tmp_path, monkeypatch):
    (tmp_path / "meminfo").unlink()
    monkeypatch.setattr(index.memory.os, "sysconf", lambda name: {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}[name])
    assert free_memory() == 40960

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(index.memory.os, "sysconf", unknown)
    assert free_memory() is None


def test_this_machine_has_some():
    free = free_memory()
    assert free is None or free > 10_000_000
