from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fanoise.catalog import Item
from fanoise.embedder import Embedder
from fanoise.errors import ConfigError
from trainer.batches import BatchPlan, StepBatches, load_plan
from trainer.config import DataConfig, ModelConfig, RunConfig
from trainer.pairs import Pair


def config(**changes) -> RunConfig:
    values = {
        "model": ModelConfig(base="unused"),
        "data": DataConfig(pairs=["a", "b"], weights=[3, 1]),
        "output_dir": Path("unused"),
        "max_steps": 40,
        "batch_size": 4,
        "chunk_size": 4,
    }
    return RunConfig(**{**values, **changes})


def pairs(name: str, count: int) -> list[Pair]:
    return [Pair(query=Item(id=f"{name}{i}", text=f"{name}{i}"), positive=Item(text="x")) for i in range(count)]


FILES = [pairs("a", 10), pairs("b", 9)]


def test_a_batch_is_of_one_file_and_has_no_row_twice():
    plan = BatchPlan(FILES, config())
    for step in range(1, 41):
        ids = [pair.query.id for pair in plan.pairs(step)]
        assert len({name[0] for name in ids}) == 1
        assert len(set(ids)) == 4


def test_files_are_drawn_by_weight_and_every_row_is_seen():
    plan = BatchPlan(FILES, config(max_steps=400))
    drawn = [pair.query.id for step in range(1, 401) for pair in plan.pairs(step)]
    share = sum(name.startswith("a") for name in drawn) / len(drawn)
    assert share == pytest.approx(0.75, abs=0.07)
    assert {pair.query.id for file in FILES for pair in file} == set(drawn)


def test_a_file_is_walked_without_repetition_within_an_epoch():
    plan = BatchPlan([pairs("a", 10)], config(data=DataConfig(pairs=["a"])))
    for first in (1, 3, 5):
        epoch = [pair.query.id for step in (first, first + 1) for pair in plan.pairs(step)]
        assert len(set(epoch)) == 8


def test_plan_depends_on_the_seed_but_not_on_how_many_steps_follow():
    long, short = BatchPlan(FILES, config(max_steps=40)), BatchPlan(FILES, config(max_steps=10))
    other = BatchPlan(FILES, config(seed=1))
    assert [long.pairs(step) for step in range(1, 11)] == [short.pairs(step) for step in range(1, 11)]
    assert [long.pairs(step) for step in range(1, 11)] != [other.pairs(step) for step in range(1, 11)]


def test_batch_larger_than_a_file_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"batch_size \(12\) is more than the 10 pairs of a"):
        BatchPlan(FILES, config(batch_size=12))


def test_processes_share_a_global_batch_that_does_not_depend_on_their_number(tiny_base, toy_pairs):
    run = config(data=DataConfig(pairs=[str(toy_pairs)], augment="crop"), batch_size=7, chunk_size=3)
    embedder = Embedder.from_pretrained(tiny_base)
    plan = load_plan(run)
    (alone,) = (StepBatches(plan, embedder, run, rank=0, world_size=1)[2],)
    shared = [StepBatches(plan, embedder, run, rank=rank, world_size=2)[2] for rank in (0, 1)]
    assert [batch.rows for batch in shared] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [len(chunk["input_ids"]) for chunk in alone.query] == [3, 3, 1]
    pixels = [torch.cat([chunk["pixel_values"] for chunk in batch.positive]) for batch in (alone, *shared)]
    assert torch.equal(pixels[0], torch.cat(pixels[1:])), "the same crops, whoever makes them"


def test_broken_image_drops_its_pair_and_is_named(tiny_base, toy_pairs, tmp_path):
    run = config(data=DataConfig(pairs=[str(toy_pairs)]), batch_size=6, chunk_size=6)
    plan = load_plan(run)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    healthy = plan.pairs(1)
    plan.pairs = lambda step: [*healthy[:2], replace(healthy[2], positive=Item(image=broken)), *healthy[3:]]
    batch = StepBatches(plan, Embedder.from_pretrained(tiny_base), run, rank=0, world_size=1)[1]
    assert batch.rows == [0, 1, 3, 4, 5]
    assert len(batch.query[0]["input_ids"]) == len(batch.positive[0]["input_ids"]) == 5
    (reject,) = batch.rejects
    assert reject["pair"] == healthy[2].query.id
    assert "broken.png" in reject["reason"]


def test_crops_change_with_the_step_and_stay_with_the_seed(tiny_base, tmp_path):
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    image.save(tmp_path / "x.png")
    rows = [Pair(query=Item(text=str(i)), positive=Item(image=tmp_path / "x.png")) for i in range(4)]
    run = config(data=DataConfig(pairs=["a"], augment="crop"))
    batches = StepBatches(BatchPlan([rows], run), Embedder.from_pretrained(tiny_base), run, rank=0, world_size=1)
    first, again, other = (batches[step].positive[0]["pixel_values"] for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
