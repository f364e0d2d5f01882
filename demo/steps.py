"""Steps that are done once: each is named, knows its inputs, and is skipped while they are unchanged."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fanoise.storage import sha256_file, write_atomic


class Steps:
    """A ledger of finished steps in one JSON file; killing the process at any point leaves it true."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._done: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}

    def run(
        self, name: str, inputs: Iterable[Path | str], outputs: Sequence[Path], action: Callable[[], object]
    ) -> bool:
        """Run `action` unless the step was finished with these inputs and its outputs are still there.

        Args:
            inputs: files, by content, and plain strings.
        Returns: whether it ran.
        """
        digest = digest_of(inputs)
        if self._done.get(name) == digest and all(output.exists() for output in outputs):
            return False
        if self._done.get(name, digest) != digest:
            print(f"{name}: again, since what goes into it has changed", flush=True)
        self._set(name, None)  # from here on the outputs are not those of the recorded inputs
        action()
        self._set(name, digest)
        return True

    def _set(self, name: str, digest: str | None) -> None:
        if digest is None:
            self._done.pop(name, None)
        else:
            self._done[name] = digest
        write_atomic(self._file, json.dumps(self._done, indent=2) + "\n")


def digest_of(inputs: Iterable[Path | str]) -> str:
    """Short digest of files' contents and plain strings, in order."""
    parts = [sha256_file(part) if isinstance(part, Path) else part for part in inputs]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
