"""Put a finished run folder on the hub."""

from pathlib import Path

from fanoise.errors import TrainingError

_NOT_NEEDED = ["checkpoints/*", ".lock", "rejects.jsonl", "csv/*", "tensorboard/*"]
"""State of the training, and what may name private files."""


def push(run: Path, repository: str) -> str:
    """Upload a run folder to a model repository, made private if it is new; returns its address.

    Raises: TrainingError saying how to do it by hand; the run folder is finished either way.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=run, ignore_patterns=_NOT_NEEDED)
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise TrainingError(
            f"push_to_hub {repository}: {(str(error) or repr(error)).splitlines()[0]}; the run in {run} is finished, "
            f"upload it by `hf auth login` and `hf upload {repository} {run}`"
        ) from None
    return str(address)
