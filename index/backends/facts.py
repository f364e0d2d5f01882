"""What a collection says of itself, in its properties: whose vectors it holds, where their fields are, is it complete.

fanoise.facts      JSON, written when the collection is made
fanoise.rows       how many rows are in it for certain, while it is filled
fanoise.complete   the digest of the facts, written when all rows are in it and can be searched
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from fanoise.errors import ArtifactError, one_line
from index.backends.layout import Layout
from index.checked import UNFIT, Checked, record_of
from index.manifest import CatalogRef, EmbedderRef

FORMAT_VERSION = 3
FACTS, ROWS, COMPLETE = "fanoise.facts", "fanoise.rows", "fanoise.complete"


@dataclass(frozen=True, kw_only=True)
class Facts(Checked):
    format_version: int = FORMAT_VERSION
    embedder: EmbedderRef
    """Its path is relative to the folder of a Milvus Lite file, and absolute in a server."""
    catalog: CatalogRef
    folder: str
    """The index folder that the collection was filled from, relative or absolute in the same way."""
    generation: int
    content: str
    """Digest of the files of that generation."""
    count: int
    dim: int
    embedder_dim: int
    group_by: str | None
    layout: Layout
    index_type: str
    index_params: dict[str, Any] = field(default_factory=dict)
    search_params: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Digest of what is in the collection, wherever the folders are now."""
        about = asdict(self) | {"embedder": self.embedder.fingerprint, "layout": self.layout.to_dict()}
        for name in ("catalog", "folder", "generation", "search_params"):
            del about[name]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"layout": self.layout.to_dict()}, ensure_ascii=False)

    @classmethod
    def read(cls, name: object, properties: Mapping[str, Any]) -> Self:
        """Raises ArtifactError for a collection that `export-milvus` did not make, or that another version made."""
        if FACTS not in properties:
            raise ArtifactError(f"{name} was not made by `python -m index export-milvus`; fill another collection")
        try:
            content = json.loads(properties[FACTS])
            version = content["format_version"]
            if version == FORMAT_VERSION:
                content["embedder"] = record_of(EmbedderRef, content["embedder"])
                content["catalog"] = record_of(CatalogRef, content["catalog"])
                content["layout"] = Layout.from_dict(content["layout"])
                return record_of(cls, content)
        except UNFIT as error:
            what = one_line(error)
            raise ArtifactError(f"{name}: its facts are damaged ({what}); fill it again with --replace") from None
        raise ArtifactError(
            f"{name} has format version {version!r}, this version reads {FORMAT_VERSION}; fill it again with --replace"
        )
