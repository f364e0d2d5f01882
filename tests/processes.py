"""Several processes of one machine at once, started without a launcher."""

import os
import subprocess
import sys
from pathlib import Path

_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def run_processes(script: str, count: int, folder: Path, *arguments: str, limit_s: int = 240) -> list[tuple[int, str]]:
    """Exit status and output of each; the script's arguments are the folder, the process's number, and the others."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_LAUNCHERS}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), str(number), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        for number in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=limit_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
