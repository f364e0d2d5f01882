"""Run the trainer's command line several times in one process; the argument is a JSON list of lists of options.

Writes the exit status of each run, one a line, to standard output. Saves the start of a process for every run.
"""

import json
import os
import sys

import torch

from trainer.__main__ import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    report = os.dup(1)
    os.dup2(silent, 1)
    for options in json.loads(sys.argv[1]):
        try:
            status = main(options)
        except SystemExit as stopped:
            status = stopped.code
        os.write(report, f"{status}\n".encode())
