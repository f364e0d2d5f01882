import json

import numpy as np
import transformers

from demo.base import CHECKPOINT, train_base
from fanoise.catalog import Item
from fanoise.embedder import Embedder


def test_recipe_of_the_base_still_runs_to_a_checkpoint_of_the_shipped_kind(tmp_path):
    options = ["--max_steps=2", "--batch_size=6", "--chunk_size=6", "--data.workers=0"]
    train_base(tmp_path, tmp_path / "checkpoint", products=12, pages=8, options=options)
    made, shipped = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "checkpoint", CHECKPOINT)
    )
    for part in ("text_config", "vision_config"):
        made[part].pop("vocab_size", None)  # so few texts do not fill the vocabulary
        shipped[part].pop("vocab_size", None)
        assert made[part] == shipped[part]
    assert (tmp_path / "checkpoint/training.csv").read_text().count("\n") == 2
    Embedder.from_pretrained(tmp_path / "checkpoint").encode([Item(text="a red mug")])


def test_shipped_checkpoint_is_a_small_qwen2_vl_that_the_auto_classes_load():
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 8 * 2**20
    model = transformers.AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    assert type(model) is transformers.Qwen2VLForConditionalGeneration
    assert 1e6 < model.num_parameters() < 4e6


def test_shipped_checkpoint_knows_red_from_blue():
    from demo.products import Product, render

    def product(colour: str) -> Product:
        return Product(
            kind="mug",
            colour=colour,
            second_colour="white",
            pattern="plain",
            material="matte",
            size="medium",
            mark="none",
            detail=_first_detail("mug"),
        )

    embedder = Embedder.from_pretrained(CHECKPOINT)
    items = embedder.encode([Item(image=render(product(colour), view=3)) for colour in ("red", "blue")])
    queries = embedder.encode([Item(text=f"a plain {c} mug with white trim") for c in ("red", "blue")], role="query")
    assert np.array_equal((queries @ items.T).argmax(axis=1), [0, 1])


def _first_detail(kind: str) -> str:
    from demo.products import KINDS

    return KINDS[kind].details[0]


def test_checkpoint_ships_the_recipe_and_log_that_made_it():
    log = (CHECKPOINT / "training.csv").read_text().splitlines()
    first, last = (dict(zip(log[0].split(","), map(float, row.split(",")), strict=True)) for row in (log[1], log[-1]))
    assert first["loss"] > 10 * last["loss"]
    assert last["lr"] < 0.01 * max(float(row.split(",")[2]) for row in log[1:])
    assert "temperature" in (CHECKPOINT / "training.yaml").read_text()
