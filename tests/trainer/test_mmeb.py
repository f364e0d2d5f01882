from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.mmeb import MmebSize, make_mmeb
from fanoise.embedder import Embedder
from fanoise.errors import CatalogError, ConfigError
from trainer.batches import StepBatches, load_plan
from trainer.config import DataConfig, ModelConfig, RunConfig
from trainer.mmeb import eval_name, is_mmeb_train, read_mmeb_train
from trainer.pairs import valid_answers

FILE = "original-00000-of-00001.parquet"
ROW = {
    "qry": "<|image_1|>\nRepresent the given image with the following question: what colour is the mug?\n",
    "qry_image_path": "mugs/1.jpg",
    "pos_text": "red",
    "pos_image_path": "",
}
PUBLISHED = """ImageNet_1K N24News HatefulMemes VOC2007 SUN397 OK-VQA A-OKVQA DocVQA InfographicsVQA ChartQA Visual7W
VisDial CIRR VisualNews_t2i VisualNews_i2t MSCOCO_t2i MSCOCO_i2t NIGHTS WebQA MSCOCO""".split()


@pytest.fixture(scope="module")
def mmeb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = MmebSize(train=8, eval=2, candidates=3)
    return make_mmeb(tmp_path_factory.mktemp("mmeb") / "small", size=size, progress=False)


def write(folder: Path, *rows: dict) -> Path:
    path = folder / "MugVQA" / FILE
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def config(mmeb: Path, *sets: str, base: str = "unused", **data) -> RunConfig:
    files = [str(mmeb / "train" / name / FILE) for name in sets]
    return RunConfig(
        model=ModelConfig(base=base),
        data=DataConfig(**{"pairs": files, "images": str(mmeb / "images"), **data}),
        output_dir=Path("unused"),
        max_steps=4,
        batch_size=6,
        chunk_size=4,
    )


def test_a_row_becomes_a_pair_without_placeholder_and_with_images_under_their_root(tmp_path):
    negative = {"neg_text": "", "neg_image_path": "mugs/2.jpg"}
    target = {"pos_text": "<|image_1|>\nRepresent the given image.\n", "pos_image_path": "mugs/3.jpg"}
    (pair,) = read_mmeb_train(write(tmp_path, {**ROW, **target, **negative}), images=tmp_path / "images")
    assert pair.query.text == "Represent the given image with the following question: what colour is the mug?"
    assert pair.query.image == tmp_path / "images/mugs/1.jpg"
    assert (pair.positive.text, pair.positive.image) == ("Represent the given image.", tmp_path / "images/mugs/3.jpg")
    assert [(item.text, item.image) for item in pair.negatives] == [(None, tmp_path / "images/mugs/2.jpg")]
    assert pair.query.id == f"MugVQA/{FILE}:1"


@pytest.mark.parametrize("negative", [{}, {"neg_text": "", "neg_image_path": ""}, {"neg_text": None}])
def test_absent_empty_and_null_negatives_are_no_negative(tmp_path, negative):
    (pair,) = read_mmeb_train(write(tmp_path, {**ROW, **negative}), images=tmp_path)
    assert pair.negatives == ()
    assert (pair.positive.text, pair.positive.image) == ("red", None)


def test_a_query_that_lost_its_image_is_named(tmp_path):
    path = write(tmp_path, ROW, {**ROW, "qry_image_path": ""})
    with pytest.raises(CatalogError, match=rf"MugVQA/{FILE}: row 2: qry has .*; fill qry_image_path") as caught:
        read_mmeb_train(path, images=tmp_path)
    assert "\n" not in str(caught.value)


def test_queries_of_a_set_without_query_images_may_keep_their_placeholder(tmp_path):
    rows = [{**ROW, "qry_image_path": "", "qry": f"<|image_1|>\nFind the image for: {n}\n"} for n in range(3)]
    pairs = read_mmeb_train(write(tmp_path, *rows), images=tmp_path)
    assert [pair.query.text for pair in pairs] == [f"Find the image for: {n}" for n in range(3)]
    assert all(pair.query.image is None for pair in pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_text": "<|image_1|>\nRepresent the given image."}, "row 1: pos_text has .* fill pos_image_path"),
        ({"neg_text": "<|image_1|>\nx", "neg_image_path": ""}, "row 1: neg_text has .* fill neg_image_path"),
        ({"pos_text": ""}, "row 1: fill pos_text, pos_image_path or both"),
        ({"qry": " ", "qry_image_path": ""}, "row 1: fill qry, qry_image_path or both"),
        ({"pos_text": ["red", "crimson"]}, "row 1: pos_text is a list, must be a string"),
    ],
)
def test_unusable_row_is_named_with_its_remedy(tmp_path, change, message):
    with pytest.raises(CatalogError, match=message):
        read_mmeb_train(write(tmp_path, {**ROW, **change}), images=tmp_path)


def test_missing_column_and_empty_file_are_refused(tmp_path):
    path = write(tmp_path, {name: cell for name, cell in ROW.items() if name != "pos_image_path"})
    with pytest.raises(CatalogError, match="no column 'pos_image_path'"):
        read_mmeb_train(path, images=tmp_path)
    pq.write_table(pa.Table.from_pylist([ROW]).slice(0, 0), path)
    with pytest.raises(CatalogError, match="no pairs in this file"):
        read_mmeb_train(path, images=tmp_path)


def test_evaluation_names_of_the_published_training_sets():
    assert [eval_name(name) for name in PUBLISHED] == ["ImageNet-1K", *PUBLISHED[1:]]
    assert eval_name("Shop_13") == "Shop-13"


def test_only_files_with_the_columns_of_mmeb_are_taken_for_mmeb(tmp_path, mmeb):
    assert all(is_mmeb_train(file) for file in (mmeb / "train").rglob("*.parquet"))
    assert not any(is_mmeb_train(file) for file in (mmeb / "eval").rglob("*.parquet"))
    own = tmp_path / "own.parquet"
    pq.write_table(pa.table({"query_text": ["a"], "positive_text": ["b"]}), own)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 not really")
    assert not any(is_mmeb_train(path) for path in (own, damaged, tmp_path / "missing.parquet", tmp_path))


def test_every_generated_row_comes_back_as_written(mmeb):
    files = sorted((mmeb / "train").rglob("*.parquet"))
    assert len(files) == 10
    for file in files:
        rows, pairs = pq.read_table(file).to_pylist(), read_mmeb_train(file, images=mmeb / "images")
        for row, pair in zip(rows, pairs, strict=True):
            sides = (("qry", "qry_image_path", pair.query), ("pos_text", "pos_image_path", pair.positive))
            for text, image, item in sides:
                assert item.text == row[text].removeprefix("<|image_1|>\n").strip()
                assert item.image == (mmeb / "images" / row[image] if row[image] else None)
                assert item.image is None or item.image.is_file()
            assert len(pair.negatives) == bool(row["neg_text"] or row["neg_image_path"])
        assert (mmeb / "eval" / eval_name(file.parent.name)).is_dir()


def test_a_step_over_the_sets_is_collated_with_images_texts_and_negatives(mmeb, tiny_base):
    embedder = Embedder.from_pretrained(tiny_base, device="cpu")
    settings = config(mmeb, "ShopVQA", "Scenes", "ShopCards", base=str(tiny_base))
    plan = load_plan(settings)
    batches = StepBatches(plan, embedder, settings, rank=0, world_size=1)
    seen = set()
    for step in range(1, settings.max_steps + 1):
        batch, pairs = batches[step], plan.pairs(step)
        seen.add(pairs[0].query.id.split("/")[0])
        assert batch.rejects == []
        assert batch.rows == list(range(6))
        assert batch.negative_counts == [len(pair.negatives) for pair in pairs]
        for side, items in (
            (batch.query, [pair.query for pair in pairs]),
            (batch.positive, [pair.positive for pair in pairs]),
            (batch.negative, [item for pair in pairs for item in pair.negatives]),
        ):
            assert [len(chunk["input_ids"]) for chunk in side.chunks] == [
                min(4, len(items) - n) for n in range(0, len(items), 4)
            ]
            images = sum(len(chunk.get("image_grid_thw", ())) for chunk in side.chunks)
            assert images == sum(item.image is not None for item in items)
            texts = [
                text
                for chunk in side.chunks
                for text in embedder.backbone.processor.tokenizer.batch_decode(chunk["input_ids"])
            ]
            assert not any("<|image_1|>" in text for text in texts)
            for text, row in zip(texts, side.rows.tolist(), strict=True):
                assert items[row].text in text
        assert np.array_equal(batch.valid_answers, batch.valid_answers.T)
    assert len(seen) > 1


def test_equal_labels_never_count_as_negatives_of_each_other(mmeb):
    plan = load_plan(config(mmeb, "Pages"))
    pairs = plan.pairs(1)
    labels = np.array([pair.positive.text for pair in pairs])
    expected = (labels[:, None] == labels[None, :]) & ~np.eye(6, dtype=bool)
    assert expected.any()
    assert np.array_equal(valid_answers(pairs), expected)


def test_mmeb_files_and_own_pairs_can_be_mixed(mmeb, toy_pairs):
    files = [str(mmeb / "train/Shop_13" / FILE), str(toy_pairs)]
    plan = load_plan(config(mmeb, pairs=files, weights=[1, 1]))
    names = {plan.pairs(step)[0].query.id.split(":")[0] for step in range(1, 5)}
    assert names == {f"Shop_13/{FILE}", f"{toy_pairs.parent.name}/pairs.jsonl"}


def test_a_missing_image_root_is_named_before_anything_is_read(mmeb):
    with pytest.raises(ConfigError, match=r"data\.images is not set; .*Shop_13.* is in MMEB format"):
        load_plan(config(mmeb, "Shop_13", images=None))
