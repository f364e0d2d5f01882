"""Put a finished run folder on the hub."""

from pathlib import Path

from fanoise.errors import TrainingError, one_line
from trainer.monitors import WANDB_FILE
from trainer.run_folder import INPUTS_FILE

_NOT_NEEDED = [
    "checkpoints/*",
    ".lock",
    INPUTS_FILE,
    "rejects.jsonl",
    "failure.json",
    "csv/*",
    "tensorboard/*",
    WANDB_FILE,
]
"""State of the training, and what may name private files."""


def push(run: Path, repository: str) -> str:
    """Upload a run folder to a model repository, made private if it is new; returns its address.

    Raises: TrainingError saying how to do it by hand; the run folder is finished either way.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=run, ignore_patterns=_NOT_NEEDED)
    except Exception as error:  # a dozen unrelated classes: no login, no access, offline, a broken connection
        raise TrainingError(
            f"push_to_hub {repository}: {one_line(error)}; the run in {run} is finished, "
            "push it by `hf auth login` and the same command with --resume auto"
        ) from None
    return str(address)
