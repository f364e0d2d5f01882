"""What the page does, without a page: search one index, compare two, say how the items moved.

One `Service` is shared by all visitors and keeps nothing of any of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from PIL import Image

from fanoise.errors import ArtifactError, InputError
from fanoise.images import open_image
from index.backends import open_backend
from index.backends.base import Backend
from index.encoding.query import load_embedder
from index.manifest import THUMBNAILS, CatalogRef
from index.search import Answer, Hit, Searcher

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

Arm = Literal["baseline", "fanoise"]
ARMS: tuple[Arm, ...] = get_args(Arm)

MAX_K = 50
MAX_TEXT_CHARACTERS = 2_000
MAX_IMAGE_PIXELS = 40_000_000
MAX_CATEGORIES = 200
CATEGORY = "category"
"""The field that the page offers as a filter."""

NOTHING_TYPED = "Type something or drop a photo."

_BLAND_NAMES = ("catalog", "catalogue", "items", "index", "data")

Photo = Path | str | bytes | Image.Image


@dataclass(frozen=True)
class Move:
    """Where an item stands compared with the other list; `by` counts places and is 0 for "same" and "new"."""

    kind: Literal["same", "up", "down", "new"]
    by: int = 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One query, two answers. `moves[arm]` runs parallel to that arm's hits."""

    baseline: Answer
    fanoise: Answer
    moves: Mapping[Arm, list[Move]]


@dataclass(frozen=True)
class Pair:
    """Two indices of the same catalogue."""

    baseline: Searcher
    fanoise: Searcher


@dataclass(frozen=True, kw_only=True)
class ArmCard:
    """What the page says about one side of a pair."""

    name: str
    noise: Mapping[str, Any]
    count: int
    device: str
    """What searches."""


@dataclass(frozen=True)
class _Query:
    text: str | None
    image: Image.Image | None
    k: int
    where: dict[str, Any] | None = field(default=None)


def movement(own_ids: Sequence[str], other_ids: Sequence[str]) -> list[Move]:
    """For each of `own_ids`, how it stands here compared with `other_ids`: "up" means nearer the top here."""
    there = {item_id: position for position, item_id in enumerate(other_ids)}
    moves = []
    for here, item_id in enumerate(own_ids):
        gain = there[item_id] - here if item_id in there else None
        if gain is None:
            moves.append(Move("new"))
        elif gain == 0:
            moves.append(Move("same"))
        else:
            moves.append(Move("up" if gain > 0 else "down", abs(gain)))
    return moves


class Service:
    """Search over named catalogues, each with a baseline and a FANoise index."""

    def __init__(self, pairs: Mapping[str, Pair]) -> None:
        """Raises: InputError without pairs, ArtifactError if the two indices of a pair hold different items."""
        if not pairs:
            raise InputError("no catalogue to search; give at least one --baseline DIR with its --fanoise DIR")
        for name, pair in pairs.items():
            _check_same_items(name, pair)
        self._pairs = dict(pairs)
        self._categories = {name: _read_categories(pair.baseline.backend) for name, pair in pairs.items()}

    @classmethod
    def open(
        cls, baseline: Sequence[str | Path], fanoise: Sequence[str | Path], names: Sequence[str] = ()
    ) -> "Service":
        """Open index folders pairwise, in order; a catalogue is called what its index calls it unless named.

        Raises: InputError for unequal numbers of folders or a name used twice, ArtifactError from the folders.
        """
        if len(baseline) != len(fanoise):
            raise InputError(
                f"{len(baseline)} --baseline but {len(fanoise)} --fanoise; each --baseline DIR needs its --fanoise DIR"
            )
        if names and len(names) != len(baseline):
            raise InputError(f"{len(names)} --name for {len(baseline)} pairs; name every pair or none")
        pairs: dict[str, Pair] = {}
        loaded: list[Embedder] = []
        for position, (left, right) in enumerate(zip(baseline, fanoise, strict=True)):
            pair = Pair(baseline=_open_searcher(left, loaded), fanoise=_open_searcher(right, loaded))
            name = names[position] if names else _catalog_name(pair.baseline.backend.catalog)
            if name in pairs:
                raise InputError(f"two pairs are called {name!r}; tell them apart with --name")
            pairs[name] = pair
        service = cls(pairs)
        for pair in pairs.values():  # the first query pays for caches; let it not be a visitor's, or one side's
            for searcher in (pair.baseline, pair.fanoise):
                searcher.search(text=name, k=1)
        return service

    @property
    def catalogs(self) -> list[str]:
        """The names to choose from, in the order given."""
        return list(self._pairs)

    @property
    def same_embedder(self) -> list[str]:
        """The catalogues of which one embedder made both indices: their columns differ by no training."""
        return [
            name
            for name, pair in self._pairs.items()
            if pair.baseline.embedder.fingerprint == pair.fanoise.embedder.fingerprint
        ]

    def pair(self, catalog: str) -> Pair:
        """Raises: InputError for an unknown name, listing the known."""
        if not isinstance(catalog, str) or catalog not in self._pairs:
            raise InputError(f"no catalogue called {catalog!r}; there are: {', '.join(self._pairs)}")
        return self._pairs[catalog]

    def searcher(self, catalog: str, arm: str) -> Searcher:
        pair = self.pair(catalog)
        if arm not in ARMS:
            raise InputError(f"arm is {arm!r}; it must be one of: {', '.join(ARMS)}")
        return pair.baseline if arm == "baseline" else pair.fanoise

    def describe(self, catalog: str, arm: Arm) -> ArmCard:
        searcher = self.searcher(catalog, arm)
        backend, embedder = searcher.backend, searcher.embedder
        return ArmCard(name=embedder.name, noise=embedder.noise, count=len(backend), device=backend.device)

    def categories(self, catalog: str) -> list[str]:
        """The sorted values of the field `category`; none if there is no such field or too many for a menu."""
        self.pair(catalog)
        return self._categories[catalog]

    def thumbnail_folders(self) -> list[Path]:
        """The only folders of the machine a visitor's browser has to read from."""
        folders = {
            searcher.backend.folder.absolute() / THUMBNAILS
            for pair in self._pairs.values()
            for searcher in (pair.baseline, pair.fanoise)
        }
        return sorted(folder for folder in folders if folder.is_dir())

    def search(
        self,
        catalog: str,
        arm: str,
        text: str | None = None,
        image: Photo | None = None,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The `k` best items of one index for a text, a photo, or both.

        Raises: InputError (nothing to search for, too long, k out of range, unknown names), ImageError.
        """
        searcher = self.searcher(catalog, arm)
        query = _read_query(text, image, k, where)
        return _run(searcher, query)

    def compare(
        self,
        catalog: str,
        text: str | None = None,
        image: Photo | None = None,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
    ) -> Comparison:
        """The same query to both indices of a catalogue; the photo is decoded once. Raises as `search` does."""
        pair = self.pair(catalog)
        query = _read_query(text, image, k, where)
        baseline, fanoise = _run(pair.baseline, query), _run(pair.fanoise, query)
        left, right = ([_item_of(hit, pair) for hit in answer.hits] for answer in (baseline, fanoise))
        return Comparison(
            baseline=baseline,
            fanoise=fanoise,
            moves={"baseline": movement(left, right), "fanoise": movement(right, left)},
        )


def is_count(k: object) -> bool:
    """Whether so many results can be asked for."""
    return isinstance(k, int | float) and not isinstance(k, bool) and 1 <= k <= MAX_K and k == int(k)


def _open_searcher(folder: str | Path, loaded: "list[Embedder]") -> Searcher:
    """Open an index with an embedder of `loaded` if it is the one that made it: two catalogues need it only once."""
    backend = open_backend(folder)
    wanted = backend.embedder
    embedder = next((known for known in loaded if known.fingerprint == wanted.fingerprint), None)
    if embedder is None:
        embedder = load_embedder(wanted, backend.folder)
        loaded.append(embedder)
    return Searcher(backend, embedder)


def _item_of(hit: Hit, pair: Pair) -> str:
    """What stands for the hit in both lists: of an item with several images, each side may have found another one."""
    field = pair.baseline.backend.group_by
    value = hit.fields.get(field) if field else None
    return hit.id if value is None else str(value)


def _catalog_name(catalog: CatalogRef) -> str:
    """`products` for products.csv, and for products/catalog.csv, where the file's own name says nothing."""
    path = Path(catalog.path)
    return path.parent.name if path.stem in _BLAND_NAMES and path.parent.name not in ("", "..") else path.stem


def _read_categories(backend: Backend) -> list[str]:
    if CATEGORY not in backend.field_names:
        return []
    values = backend.values(CATEGORY).unique().to_pylist()
    named = sorted(str(value) for value in values if value is not None and value != "")
    return named if len(named) <= MAX_CATEGORIES else []


def _run(searcher: Searcher, query: _Query) -> Answer:
    return searcher.search(text=query.text, image=query.image, k=query.k, where=query.where)


def _read_query(text: str | None, image: Photo | None, k: int, where: Mapping[str, Any] | None) -> _Query:
    if text is not None and not isinstance(text, str):
        raise InputError(f"text is {text!r}; it must be a string")
    text = (text or "").strip()
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InputError(
            f"The text has {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} are searched. Please shorten it."
        )
    if not is_count(k):
        raise InputError(f"k is {k!r}; it must be a whole number from 1 to {MAX_K}")
    if not text and image is None:
        raise InputError(NOTHING_TYPED)
    picture = None if image is None else open_image(image, max_pixels=MAX_IMAGE_PIXELS)
    chosen = {name: value for name, value in (where or {}).items() if value}
    return _Query(text or None, picture, int(k), chosen or None)


def _check_same_items(name: str, pair: Pair) -> None:
    left, right = set(pair.baseline.backend.live_ids), set(pair.fanoise.backend.live_ids)
    if left == right:
        return
    odd = min(left ^ right)
    side = "baseline" if odd in left else "FANoise"
    raise ArtifactError(
        f"catalogue {name!r}: the two indices hold different items ({len(left)} and {len(right)}; for example "
        f"{odd!r} is only in the {side} index), so they cannot be compared; build both from the same catalogue"
    )
