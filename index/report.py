"""What the command line prints for people: the end of a build, `info`, and search results as a table."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fanoise.errors import printable
from index.build import Built
from index.encoding.intake import Taken
from index.encoding.plan import unfinished
from index.encoding.rejects import Kind, Reject, images_hint, kinds_of
from index.held_out import SAMPLED_ROWS
from index.items import DUPLICATE_OF, field_names
from index.manifest import ITEMS, REBUILD, REJECTS, THUMBNAILS, Manifest
from index.search import Answer
from index.update import Change

_SHOWN_KINDS = 5
_WIDEST_CELL = 40


def describe_build(folder: Path, built: Built, seconds: float) -> str:
    """What a build did, and an example of each kind of row that it rejected."""
    manifest = built.manifest
    assert manifest is not None, "other processes are still at work on it"
    lines = [f"Indexed {_count(manifest.live, 'item')} in {seconds:.1f} s: {folder}"]
    first, *more = _taken(built)
    lines += [first + f"; {built.removed:,} of the index before are no more" * bool(built.removed), *more]
    if manifest.rejected:
        ledger = manifest.generation_in(folder) / REJECTS
        lines.append(f"Rejected {_count(manifest.rejected, 'row')}, listed in {ledger}:")
        lines += _reasons(kinds_of(ledger), built)
    if manifest.tuning:
        lines.append(f"FAISS {manifest.factory}, {manifest.factory_reason}")
    lines += describe_tuning(manifest)
    return _text(lines)


def _taken(taken: Taken) -> Iterator[str]:
    """What became of the rows of a catalogue."""
    counts = f"{'Took the vectors of' if taken.vectors_given else 'Encoded'} {taken.encoded:,}"
    counts += f" ({taken.encoded_elsewhere:,} before, or by other processes)" * bool(taken.encoded_elsewhere)
    yield counts + f", copied {taken.reused:,} that were known" * bool(taken.reused)
    if taken.seconds and taken.model_seconds:
        share = f"{taken.model_seconds / taken.seconds:.0%}"
        yield f"Encoding took {taken.seconds:.1f} s here, {share} of it in the model"
    if taken.deaths:
        processes = "1 worker process" if taken.deaths == 1 else f"{taken.deaths:,} worker processes"
        yield f"{processes} died or stalled; a row that one did so at alone is among the rejected ones"
    if taken.passed_over:
        files = _count(sum(taken.passed_over.values()), "file")
        kinds = ", ".join(f"{count:,} × {suffix or 'no suffix'}" for suffix, count in taken.passed_over.items())
        yield f"Passed over {files} of no kind that is read: {kinds}"
    if taken.duplicates:
        rejected, named = taken.duplicates - taken.named_duplicates, taken.named_duplicates
        parts = [f"{rejected:,} rejected"] * bool(rejected)
        parts += [f"{named:,} named in the field {DUPLICATE_OF}"] * bool(named)
        yield f"Near-duplicates of images: {', '.join(parts)}"


def _reasons(kinds: Sequence[Kind], taken: Taken) -> list[str]:
    """A line for each of the most frequent kinds of rejects, and what may be the cause of one."""
    lines = [
        f"  {kind.count:,} × {kind.reason}, {'such as ' * (kind.count > 1)}{_name(kind.first)}"
        for kind in kinds[:_SHOWN_KINDS]
    ]
    rest = sum(kind.count for kind in kinds[_SHOWN_KINDS:])
    lines += [f"  {rest:,} for other reasons"] * bool(rest)
    hint = images_hint(kinds, taken.encoded + taken.reused)
    return lines + [f"  {hint}"] * bool(hint)


def describe_change(folder: Path, command: str, change: Change, seconds: float) -> str:
    """What `add`, `update`, `delete` or `compact` did."""
    manifest = change.manifest
    if not (change.added or change.deleted or change.rejected or command == "compact"):
        return f"No item matches; {folder} is as it was."
    done = {
        "add": f"Added {_count(change.added, 'item')}"
        + (f", replacing {_count(change.deleted, 'row')}" * bool(change.deleted)),
        "update": f"Updated {_count(change.added, 'item')}",
        "delete": f"Deleted {_count(change.deleted, 'item')}",
        "compact": f"Removed {_count(change.deleted, 'deleted row')} from the files and made FAISS {manifest.factory}",
    }[command]
    lines = [
        f"{done} in {seconds:.1f} s: {folder} holds {_count(manifest.live, 'item')}, generation {manifest.generation}"
    ]
    if command in ("add", "update"):
        lines += _taken(change)
    if change.rejected:
        ledger = manifest.generation_in(folder) / REJECTS
        lines.append(f"Rejected {_count(change.rejected, 'row')}, listed at the end of {ledger}:")
        lines += _reasons(kinds_of(ledger, last=change.rejected), change)
    lines += [f"note: {note}" for note in change.notes]
    if command != "delete" and _missed(manifest):
        lines += islice(describe_tuning(manifest), 1)
    if manifest.deleted > manifest.live // 4:
        rows = _count(manifest.deleted, "deleted row")
        lines.append(f"{rows} still in the files; `python -m index compact` frees their room")
    return _text(lines)


def describe_faults(folder: Path, faults: Sequence[str], *, reencoded: int) -> str:
    """What `verify` found; `reencoded` items were to be encoded again."""
    if faults:
        remedy = f"restore what is damaged from a copy, or make it anew with {REBUILD}"
        return _text([*faults, f"{_count(len(faults), 'fault')}; {remedy}"])
    manifest = Manifest.read(folder)
    again = (
        f"; {_count(min(reencoded, manifest.live), 'item')} encoded again agreed with their vectors"
        if reencoded
        else ""
    )
    return f"{folder} is sound: {_count(manifest.live, 'item')}, generation {manifest.generation}{again}"


def describe_index(folder: Path, manifest: Manifest, device: str) -> str:
    """A summary of the manifest, and the names of the fields.

    Args:
        device: what searches the index on this machine.
    """
    embedder = manifest.embedder
    ledger = manifest.generation_in(folder) / REJECTS
    shortened = f", the first of the embedder's {manifest.embedder_dim}" if manifest.dim < manifest.embedder_dim else ""
    rows = [
        ("index", f"{folder}, generation {manifest.generation}"),
        ("items", f"{manifest.live:,}" + (f" grouped by {manifest.group_by}" if manifest.group_by else "")),
        ("vectors", f"dim {manifest.dim}{shortened}, {manifest.precision}"),
        (
            "deleted",
            f"{manifest.deleted:,}" + (", still in the files until `index compact`" * bool(manifest.deleted)),
        ),
        ("rejected", f"{manifest.rejected:,}" + (f" (see {ledger})" if manifest.rejected else "")),
        ("catalogue", f"{manifest.catalog.name} ({manifest.catalog.path}, seen from the index)"),
        *[("added from", f"{catalog.name} ({catalog.path})") for catalog in manifest.added],
        ("fields", ", ".join(_field_names(manifest.generation_in(folder) / ITEMS)) or "none"),
        ("text", manifest.catalog.text or "the column 'text', if any"),
        ("embedder", f"{embedder.name} ({embedder})"),
        ("fingerprint", ", ".join(f"{part} {value[:12]}" for part, value in embedder.fingerprint.items())),
        ("noise", _noise(embedder.noise)),
        ("factory", f"{manifest.factory} ({manifest.factory_reason})"),
        ("searched by", device),
        (
            "ann overlap",
            f"{manifest.ann_overlap:.3f} of the exact ten nearest" + ", of sampled rows" * bool(manifest.tuning),
        ),
        ("size", ", ".join(f"{name} {_bytes(size)}" for name, size in index_sizes(folder, manifest).items())),
        *[
            (
                "unfinished",
                f"{one.catalog}, begun {one.since}, {_bytes(one.size_bytes)}: if that has ended, the same command goes "
                f"on with it; to give it up, remove {one.folder}",
            )
            for one in unfinished(folder)
        ],
        ("created", manifest.created),
        ("versions", ", ".join(f"{name} {number}" for name, number in manifest.versions.items())),
    ]
    lines = [f"{name:<12} {value}" for name, value in rows]
    tuned = list(describe_tuning(manifest))
    return _text([*lines, *([""] if tuned else []), *tuned])


def describe_tuning(manifest: Manifest) -> Iterator[str]:
    """What an index was tuned to, and the curve it was chosen from; nothing for an exact one."""
    tuning = manifest.tuning
    if not tuning.get("queries"):
        return
    by = ""
    if manifest.search:
        others = tuning.get("others", 0)
        by = (
            f", other than the {others} it was tuned with" if others else ", those it was tuned with, which flatters it"
        )
    yield (
        f"recall@10 {tuning['recall']:.3f} over {tuning['queries']} {tuning['source']}{by}, "
        f"target {tuning['target']:g}{_missed(manifest)}"
    )
    if tuning["source"] != SAMPLED_ROWS:
        yield f"recall@10 {manifest.ann_overlap:.3f} over {SAMPLED_ROWS}, which lie where the index expects them"
    if not manifest.curve:
        return
    chosen = ",".join(f"{name}={value}" for name, value in manifest.search.items())
    lines = [
        [
            f"{point['recall']:.3f}",
            _milliseconds(point["ms"]),
            point["parameters"] + "  <" * (point["parameters"] == chosen),
        ]
        for point in manifest.curve
    ]
    yield from _table(["recall", "ms", "parameters"], lines, numbers=2)


def _missed(manifest: Manifest) -> str:
    """How the recall that was asked for was not reached; empty where it was, or none was asked for."""
    tuning = manifest.tuning
    best = "this is the best there is"
    if not manifest.search:
        best = f"{manifest.factory} has nothing to look further with, another --factory may have (auto chooses one)"
    if tuning and tuning["recall"] < tuning["target"] and not tuning.get("reached", False):
        return f", which was not reached: {best}"
    if not tuning.get("reached", True):
        return f", which is reached by less than a standard error: {best}"
    return ""


def index_sizes(folder: Path, manifest: Manifest) -> dict[str, int]:
    """Bytes of each file of the current generation, of the thumbnails, and of these together."""
    sizes = {name: record.size_bytes for name, record in manifest.files.items()}
    sizes[THUMBNAILS] = sum(file.stat().st_size for file in (folder / THUMBNAILS).glob("*/*.jpg"))
    return sizes | {"total": sum(sizes.values())}


def describe_answer(answer: Answer, device: str) -> str:
    """A table of the hits; in a hybrid search with what they are ordered by. Notes come last.

    Args:
        device: what searched.
    """
    notes = [f"note: {note}" for note in answer.notes]
    if not answer.hits:
        return _text(["No hits.", *notes])
    names = list(answer.hits[0].fields)
    fused = answer.hits[0].fused is not None
    header = ["#", *(["fused"] if fused else []), "score", "id", *names]
    lines = [
        [
            str(hit.position),
            *([] if hit.fused is None else [f"{hit.fused:.4f}"]),
            f"{hit.score:.4f}",
            _cell(hit.id),
            *(_cell(hit.fields.get(name)) for name in names),
        ]
        for hit in answer.hits
    ]
    latency = ", ".join(f"{part} {value:.1f} ms" for part, value in answer.latency_ms.items())
    return _text([*_table(header, lines, numbers=header.index("id")), "", f"{latency} on {device}", *notes])


def _text(lines: Iterable[str]) -> str:
    """The lines as a terminal may show them, whatever an index says of itself."""
    return "\n".join(map(printable, lines))


def _table(header: list[str], lines: list[list[str]], *, numbers: int) -> Iterator[str]:
    """Aligned columns, the first `numbers` to the right; the last ones that do not fit the terminal are left out."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    room = shutil.get_terminal_size((120, 24)).columns
    shown = max(numbers + 1, sum(1 for i in range(len(widths)) if sum(widths[: i + 1]) + 2 * i <= room))
    for cells in [header, *lines]:
        aligned = (
            c.rjust(w) if i < numbers else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join(list(aligned)[:shown]).rstrip()


def _field_names(items: Path) -> list[str]:
    with suppress(OSError, pa.ArrowException):  # `verify` says what is wrong
        if items.is_file():  # a pipe would be waited for
            return field_names(pq.read_schema(items))
    return ["unknown, items.parquet cannot be read"]


def _name(reject: Reject) -> str:
    path = f" ({reject.path})" if reject.path and reject.path != reject.id else ""
    return f"{reject.id}{path}"


def _noise(noise: dict[str, Any]) -> str:
    if not noise:
        return "unknown"
    if not noise.get("strength"):
        return "none (strength 0); searching is always noise-free"
    settings = ", ".join(f"{name} {value}" for name, value in noise.items())
    return f"trained with {settings}; searching is always noise-free"


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 1] + "…"


def _milliseconds(ms: float) -> str:
    return f"{ms:.3f}" if ms < 1 else f"{ms:.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
