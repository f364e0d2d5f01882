"""What a search returns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.items import json_value


@dataclass(frozen=True)
class Hit:
    id: str
    score: float
    """Cosine similarity of query and item."""
    position: int
    """Place in the result list, from 1."""
    fields: dict[str, Any]
    image: Path | None
    """The thumbnail, None for an item without an image."""
    fused: float | None = None
    """In a hybrid search, what hits are ordered by: reciprocal ranks of vector and words, summed (`index.hybrid`)."""

    def to_json(self) -> dict[str, Any]:
        """id, score, position and the fields beside them; a field with one of those names becomes `field.<name>`."""
        own = {"id": self.id, "score": self.score, "position": self.position}
        if self.fused is not None:
            own["fused"] = self.fused
        fields = {f"field.{name}" if name in own else name: json_value(value) for name, value in self.fields.items()}
        return own | fields


@dataclass(frozen=True)
class Answer:
    hits: list[Hit]
    latency_ms: dict[str, float]
    """Milliseconds to `encode` the query (its image opened, turns waited for) and to `search` the index."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: values of the filter that no item has, with the near ones; fall-backs taken."""

    def to_json(self) -> dict[str, Any]:
        """`notes` only when there are some."""
        answer = {"hits": [hit.to_json() for hit in self.hits], "latency_ms": self.latency_ms}
        return answer | ({"notes": self.notes} if self.notes else {})
