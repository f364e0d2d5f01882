import os
import random
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanoise.errors import CatalogError
from trainer import mmeb, pairs
from trainer.mmeb import read_mmeb_train
from trainer.pair_columns import ContentDigest, PairRow, batch_of_rows
from trainer.pair_table import PairTable
from trainer.pairs import read_pairs

SPACE = "".join(chr(code) for code in range(0x11000) if chr(code).isspace())
PLACEHOLDER = "<|image_1|>"
TEXTS = [None, "", " ", SPACE, "red mug", f"{SPACE}é 𝄞\n{SPACE}", "\0", "\x1c", "\u180e", "\u200b", "7 a", "a", "b"]
PATHS = [
    None,
    "",
    "a.png",
    "sub/../a.png",
    "./a.png",
    "sub//a.png",
    "/abs/a.png",
    "//abs/a.png",
    "a.png/",
    "..",
    " ",
    "x",
]
PATHS += [".hidden/é b.jpg", "a/...png", "a/.../b.png", "/abs/../abs/a.png", "a.png/."]
FILLED = ["red mug", "blue mug", " a ", "7 a"]


def write(path: Path, rows: list[dict], types: dict[str, pa.DataType]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(types.items()))), path)
    return path


def by_rows(monkeypatch: pytest.MonkeyPatch, read, *arguments, **keywords):
    with monkeypatch.context() as patch:
        patch.setattr(mmeb, "_converted", lambda *_: None)
        patch.setattr(pairs, "_converted", lambda *_: None)
        return read(*arguments, **keywords)


def spy(monkeypatch: pytest.MonkeyPatch, module) -> list[bool]:
    """Grows by whether the batch was converted column by column."""
    convert, seen = module._converted, []

    def converted(batch):
        found = convert(batch)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(module, "_converted", converted)
    return seen


def outcome(read, *arguments, **keywords):
    """The whole content of a table, or the error's message."""
    try:
        table = read(*arguments, **keywords)
    except CatalogError as error:
        return str(error)
    return list(table), table.keys.tolist(), table.equal_negatives, table.names_images


def mmeb_row(draw: random.Random, *, faults: bool) -> dict:
    cells = {name: draw.choice(PATHS if "image" in name else TEXTS) for name in ("neg_text", "neg_image_path")}
    for text, image in (("qry", "qry_image_path"), ("pos_text", "pos_image_path")):
        cells |= {text: draw.choice(TEXTS if faults else FILLED), image: draw.choice(PATHS)}
    for text, image in (("qry", "qry_image_path"), ("pos_text", "pos_image_path"), ("neg_text", "neg_image_path")):
        if draw.random() < 0.5 and cells[text] is not None and (cells[image] or faults):
            cells[text] = f"{PLACEHOLDER}\n{cells[text]}{draw.choice(['', PLACEHOLDER])}"
    return cells


def own_row(draw: random.Random, lists: tuple[bool, bool], *, faults: bool) -> dict:
    cells = {name: draw.choice(PATHS) for name in ("query_image", "positive_image")}
    cells |= {name: draw.choice(TEXTS if faults else FILLED) for name in ("query_text", "positive_text")}
    count = draw.randrange(3)
    for name, choice, is_list in zip(("negative_text", "negative_image"), (TEXTS, PATHS), lists, strict=True):
        drawn = [cells["positive_text" if choice is TEXTS else "positive_image"], *choice]
        cells[name] = [draw.choice(drawn) for _ in range(count)] if is_list else draw.choice(drawn)
    return cells | {"group": draw.choice([*TEXTS, "g", "g"])}


@pytest.mark.parametrize("faults", [False, True])
def test_columns_of_mmeb_give_the_pairs_or_the_error_that_rows_give(tmp_path, monkeypatch, faults):
    types = dict.fromkeys(mmeb_row(random.Random(0), faults=False), pa.string())
    columns, outcomes = spy(monkeypatch, mmeb), set()
    for seed in range(60):
        draw = random.Random(seed)
        rows = [mmeb_row(draw, faults=faults and draw.random() < 0.2) for _ in range(20)]
        path = write(tmp_path / f"{seed}.parquet", rows, types)
        found = outcome(read_mmeb_train, path, images="images")
        assert found == by_rows(monkeypatch, outcome, read_mmeb_train, path, images="images")
        outcomes.add(type(found))
    assert outcomes == ({tuple, str} if faults else {tuple})
    assert sum(columns) > 5


@pytest.mark.parametrize("lists", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("faults", [False, True])
def test_columns_of_own_pairs_give_the_pairs_or_the_error_that_rows_give(tmp_path, monkeypatch, lists, faults):
    cells = own_row(random.Random(0), (False, False), faults=False)
    types = dict.fromkeys(cells, pa.string())
    for name, is_list in zip(("negative_text", "negative_image"), lists, strict=True):
        types[name] = pa.list_(pa.string()) if is_list else pa.string()
    columns = spy(monkeypatch, pairs)
    for seed in range(40):
        draw = random.Random(seed)
        rows = [own_row(draw, lists, faults=faults and draw.random() < 0.1) for _ in range(draw.randrange(1, 6))]
        if seed % 3 < 2:
            empty = ("negative_text", "negative_image")[seed % 3]
            rows = [{**row, empty: None} for row in rows]
        path = write(tmp_path / f"{seed}.parquet", rows, types)
        assert outcome(read_pairs, path) == by_rows(monkeypatch, outcome, read_pairs, path)
    assert sum(columns) > 5


def test_plain_tables_are_not_read_row_by_row(tmp_path, monkeypatch):
    def refuse(row):
        raise AssertionError("a row by itself")

    monkeypatch.setattr(pairs, "_check", refuse)
    monkeypatch.setattr(mmeb, "_check", refuse)
    own = {"query_text": "q", "query_image": "a.png", "positive_text": "p", "negative_text": ["n", "p"], "group": None}
    types = {**dict.fromkeys(own, pa.string()), "negative_text": pa.list_(pa.string())}
    assert len(read_pairs(write(tmp_path / "own.parquet", [own] * 5000, types))) == 5000
    theirs = {"qry": f"{PLACEHOLDER}q", "qry_image_path": "a.png", "pos_text": "p", "pos_image_path": ""}
    path = write(tmp_path / "theirs.parquet", [theirs] * 5000, dict.fromkeys(theirs, pa.string()))
    assert len(read_mmeb_train(path, images=tmp_path)) == 5000


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_other_kinds_of_string_columns_are_strings(tmp_path, kind):
    table = pa.table({name: pa.array(["a", "b", "a"]).cast(kind) for name in ("query_text", "positive_text")})
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert [pair.positive.text for pair in read_pairs(tmp_path / "pairs.parquet")] == ["a", "b", "a"]


def test_text_that_is_not_utf8_is_refused_with_its_rows(tmp_path):
    cells = pa.array([b"fine"] * 200 + [b"\xff"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), len(cells), cells.buffers())
    pq.write_table(pa.table({"query_text": broken, "positive_text": ["p"] * 201}), tmp_path / "pairs.parquet")
    with pytest.raises(CatalogError, match=r"pairs.parquet: row [0-9]+: the value of .* cannot be read"):
        read_pairs(tmp_path / "pairs.parquet")


def test_keys_are_hashes_of_a_text_s_length_text_and_absolute_path(tmp_path):
    """They decide which pairs meet in a batch, so another definition would be another training."""
    rows = [{"query_text": text, "query_image": path, "positive_text": "p"} for text in TEXTS for path in PATHS]
    rows = [row for row in rows if (row["query_text"] or "").strip() or (row["query_image"] or "").strip()]
    types = dict.fromkeys(rows[0], pa.string())
    table = read_pairs(write(tmp_path / "pairs.parquet", rows, types), images="images")

    def key(value: str) -> int:
        return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little", signed=True)

    expected = []
    for row in rows:
        text, image = (cell if cell and cell.strip() else None for cell in (row["query_text"], row["query_image"]))
        path = os.path.abspath(Path("images") / image) if image else ""  # noqa: PTH100
        expected.append([key(f"{len(text or '')} {text or ''}{path}"), key("1 p"), 0])
    assert np.array_equal(table.keys, expected)


def test_rows_are_counted_as_they_are_read(tmp_path):
    path = write(
        tmp_path / "p.parquet",
        [{"query_text": "q", "positive_text": "p"}] * 9000,
        {"query_text": pa.string(), "positive_text": pa.string()},
    )
    counts: list[int] = []
    table = read_pairs(path, on_rows=counts.append)
    assert isinstance(table, PairTable)
    assert sum(counts) == 9000
    assert len(counts) > 1


def digest_of(rows: list[PairRow], cut: int = 4) -> str:
    found, batch = ContentDigest(), batch_of_rows(rows)
    for start in range(0, len(batch), cut):
        found.update(batch.slice(start, cut))
    return found.hexdigest()


def test_a_digest_is_that_of_the_content_however_it_is_cut():
    rows = [
        PairRow(
            (f"q{i}", f"{i}.png" if i % 3 else None), (None, bytes(i + 1)), ((f"n{i}", None),) * (i % 3), "ab"[i % 2]
        )
        for i in range(10)
    ]
    assert {digest_of(rows, cut) for cut in (1, 3, 4, 10)} == {digest_of(rows)}
    changed = [
        rows[:-1],
        rows[::-1],
        [*rows[:5], rows[5]._replace(query=("q", "5.png")), *rows[6:]],
        [*rows[:5], rows[5]._replace(query=("q5", "x.png")), *rows[6:]],
        [*rows[:5], rows[5]._replace(positive=(None, bytes(7))), *rows[6:]],
        [*rows[:5], rows[5]._replace(negatives=(("n5", None), ("n6", None))), *rows[6:]],
        [*rows[:5], rows[5]._replace(negatives=(("n5", None),)), *rows[6:]],
        [*rows[:5], rows[5]._replace(group="a"), *rows[6:]],
        [*rows[:4], rows[4]._replace(query=("q4q", "4.png")), rows[5]._replace(query=("5", "5.png")), *rows[6:]],
        [
            *rows[:4],
            rows[4]._replace(negatives=()),
            rows[5]._replace(negatives=(("n4", None), *rows[5].negatives)),
            *rows[6:],
        ],
    ]
    assert len({digest_of(rows), *map(digest_of, changed)}) == 1 + len(changed)
