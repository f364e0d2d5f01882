import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fanoise.embedder import Embedder
from fanoise.errors import CatalogError, ConfigError, ImageError, TrainingError
from trainer.batches import BatchPlan, StepBatch, StepBatches, load_plan, step_loader
from trainer.config import DataConfig, LoraConfig, ModelConfig, RunConfig
from trainer.lost_processes import naming_lost_processes
from trainer.pair_columns import PairRow, batch_of_rows
from trainer.pair_table import PairTable, pair_keys
from trainer.pairs import Pair, valid_answers


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


def table(name: str, count: int, *, positives: int | None = None) -> PairTable:
    """`count` pairs with `positives` different positives, by default all different."""
    rows = [
        PairRow((f"{name}{number}", None), (f"{name} {number % (positives or count)}", None)) for number in range(count)
    ]
    return PairTable.write([batch_of_rows(rows)], path=Path(name), images=Path())


def files() -> list[PairTable]:
    return [table("a", 10), table("b", 9)]


def texts(pairs: list[Pair]) -> list[str]:
    return [str(pair.query.text) for pair in pairs]


def drawn(plan: BatchPlan, steps: range) -> list[str]:
    return [text for step in steps for text in texts(plan.pairs(step))]


def test_a_batch_is_of_one_file_and_has_no_row_twice():
    plan = BatchPlan(files(), config())
    for step in range(1, 41):
        batch = texts(plan.pairs(step))
        assert len({text[0] for text in batch}) == 1
        assert len(set(batch)) == 4


@pytest.mark.parametrize("sub_batch_size", [None, 1, 2])
def test_files_are_drawn_by_weight_and_every_row_is_seen(sub_batch_size):
    run = config(data=DataConfig(pairs=["a", "b"], weights=[3, 1], sub_batch_size=sub_batch_size), max_steps=1000)
    counts = Counter(drawn(BatchPlan(files(), run), range(1, 1001)))
    share = sum(count for text, count in counts.items() if text.startswith("a")) / 4000
    draws = 1000 * 4 // (sub_batch_size or 4)
    assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / draws) ** 0.5)
    assert len(counts) == 19


def test_without_weights_files_are_drawn_by_their_size():
    run = config(data=DataConfig(pairs=["a", "b", "c"]), max_steps=2000)
    counts = Counter(
        text[0] for text in drawn(BatchPlan([table("a", 70), table("b", 20), table("c", 10)], run), range(1, 2001))
    )
    for name, share in (("a", 0.7), ("b", 0.2), ("c", 0.1)):
        assert counts[name] / 8000 == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)


def test_a_file_is_walked_without_repetition_within_an_epoch():
    plan = BatchPlan([table("a", 10)], config(data=DataConfig(pairs=["a"])))
    for first in (1, 3, 5):
        assert len(set(drawn(plan, range(first, first + 2)))) == 8


def test_sub_batches_are_of_one_file_each_and_walk_its_epochs():
    run = config(data=DataConfig(pairs=["a", "b"], weights=[1, 1], sub_batch_size=5), batch_size=20, max_steps=200)
    plan = BatchPlan([table("a", 40), table("b", 30)], run)
    walked: dict[str, list[str]] = {"a": [], "b": []}
    mixed = 0
    for step in range(1, 201):
        batch = texts(plan.pairs(step))
        names = [{text[0] for text in batch[start : start + 5]} for start in range(0, 20, 5)]
        assert all(len(name) == 1 for name in names)
        mixed += len(set.union(*names)) == 2
        for text in batch:
            walked[text[0]].append(text)
    assert mixed > 100
    for name, size in (("a", 40), ("b", 30)):
        for start in range(0, len(walked[name]) // size * size, size):
            assert len(set(walked[name][start : start + size])) == size


@pytest.mark.parametrize("sub_batch_size", [None, 2])
def test_plan_depends_on_seed_and_step_only(sub_batch_size):
    run = config(data=DataConfig(pairs=["a", "b"], sub_batch_size=sub_batch_size))
    walked, jumped, other = (BatchPlan(files(), each) for each in (run, run, replace(run, seed=1)))
    steps = [walked.pairs(step) for step in range(1, 41)]
    assert jumped.pairs(33) == steps[32]
    assert [walked.pairs(step) for step in (40, 1, 17)] == [steps[39], steps[0], steps[16]]
    assert [other.pairs(step) for step in range(1, 41)] != steps


def test_plan_does_not_depend_on_how_many_steps_follow():
    long, short = (BatchPlan(files(), config(max_steps=steps)) for steps in (40, 10))
    assert drawn(long, range(1, 11)) == drawn(short, range(1, 11))


def test_a_late_step_needs_no_earlier_one(monkeypatch):
    plan = BatchPlan([table("a", 100)], config(data=DataConfig(pairs=["a"]), max_steps=100_000))
    orders = []
    order = type(plan._epochs[0])._order
    monkeypatch.setattr(
        type(plan._epochs[0]), "_order", lambda self, *given: orders.append(given[0]) or order(self, *given)
    )
    plan.pairs(100_000)
    assert orders == [3999]


def test_no_positive_is_in_a_batch_twice_where_the_file_has_enough():
    data = DataConfig(pairs=["a", "b"], weights=[1, 1], sub_batch_size=4)
    plan = BatchPlan(
        [table("a", 1200, positives=200), table("b", 1200, positives=240)],
        config(data=data, batch_size=32, chunk_size=32, max_steps=60),
    )
    assert plan.notes == []
    several = 0
    for step in range(1, 61):
        pairs = plan.pairs(step)
        several += max(Counter(pair.query.text[0] for pair in pairs).values()) > 4
        assert len({pair.positive.text for pair in pairs}) == 32
    assert several > 50, "most batches take several sub-batches of one file"


def test_keys_of_a_batch_are_those_of_its_pairs():
    data = DataConfig(pairs=["a", "b"], weights=[1, 1], sub_batch_size=2)
    plan = BatchPlan([table("x", 10, positives=3), table("x", 9, positives=4)], config(data=data, batch_size=8))
    for step in range(1, 11):
        pairs = plan.pairs(step)
        assert plan.keys(plan.rows(step)).tolist() == [list(pair_keys(pair)) for pair in pairs]


def test_positives_that_must_repeat_are_said_once_and_masked():
    run = config(data=DataConfig(pairs=["memes", "b"]), batch_size=8, chunk_size=8)
    plan = BatchPlan([table("m", 40, positives=2), table("b", 20)], run)
    (note,) = plan.notes
    assert note.startswith("memes: 20 of 40 pairs have the same positive")
    assert "\n" not in note
    step = next(step for step in range(1, 41) if plan.pairs(step)[0].query.text.startswith("m"))
    pairs = plan.pairs(step)
    assert Counter(pair.positive.text for pair in pairs) == {"m 0": 4, "m 1": 4}
    same = np.array([[one.positive.text == other.positive.text for one in pairs] for other in pairs])
    np.fill_diagonal(same, False)
    assert np.array_equal(valid_answers(pairs), same)


def test_mined_negatives_that_are_left_out_are_said():
    rows = [PairRow((f"{n}", None), (f"p{n}", None), [("p1", None)]) for n in range(4)]
    own = PairTable.write([batch_of_rows(rows)], path=Path("a"), images=Path())
    assert BatchPlan([own], config(data=DataConfig(pairs=["a"]))).notes == [
        "a: 1 mined negative(s) equal the positive of their own pair and are left out"
    ]


def test_plan_tells_what_it_draws_from():
    assert BatchPlan(files(), config()).files == [("a", 10), ("b", 9)]


def test_file_smaller_than_its_part_of_a_batch_is_refused_with_the_remedy():
    whole = r"^batch_size \(12\) is more than the 10 pairs of a; set batch_size to at most 10"
    with pytest.raises(
        ConfigError, match=whole + ", or leave that file out, or set data.sub_batch_size to at most 10$"
    ):
        BatchPlan(files(), config(batch_size=12))
    with pytest.raises(ConfigError, match=whole + "$"):
        BatchPlan(files()[:1], config(batch_size=12, data=DataConfig(pairs=["a"])))
    data = DataConfig(pairs=["a", "b"], sub_batch_size=10)
    part = r"^data.sub_batch_size \(10\) is more than the 9 pairs of b; set data.sub_batch_size to at most 9"
    with pytest.raises(ConfigError, match=part + ", or leave that file out$"):
        BatchPlan(files(), config(data=data, batch_size=20))
    unused = DataConfig(pairs=["a", "b"], weights=[1, 0])
    assert {text[0] for text in drawn(BatchPlan(files(), config(data=unused, batch_size=10)), range(1, 41))} == {"a"}


@pytest.mark.parametrize("weights", [[-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_unusable_weights_are_refused(weights):
    with pytest.raises(ConfigError, match=r"data.weights must be >= 0 with a positive sum, got"):
        BatchPlan(files(), config(data=DataConfig(pairs=["a", "b"], weights=weights)))


@pytest.fixture(scope="module")
def embedder(tiny_base) -> Embedder:
    return Embedder.from_pretrained(tiny_base, device="cpu")


@pytest.fixture
def broken_pairs(tmp_path) -> Path:
    """Eight pairs, of which three have a broken image on a side they need, and two a broken negative."""
    for name in "abcdefgh":
        Image.new("RGB", (30, 30), (ord(name), 90, 90)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_bytes(b"not an image")
    rows = [
        {"query_text": "0", "positive_image": "a.png", "negative_image": ["b.png", "c.png"]},
        {"query_image": "gone.png", "positive_image": "b.png", "negative_image": ["c.png"]},
        {"query_text": "2", "positive_image": "text.png"},
        {"query_text": "3", "positive_image": "d.png", "negative_image": ["gone.png", "e.png", "text.png"]},
        {"query_text": "4", "positive_image": "e.png", "negative_image": ["gone.png"]},
        {"query_text": "5", "positive_image": "f.png"},
        {"query_image": "text.png", "positive_image": "gone.png"},
        {"query_text": "7", "positive_text": "g", "negative_text": ["x", "y", "z"]},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def in_order(side) -> list[dict[str, torch.Tensor]]:
    """The chunks of one row each."""
    return [chunk for _, chunk in sorted(zip(side.rows.tolist(), side.chunks, strict=True), key=lambda row: row[0])]


def test_processes_share_a_global_batch_that_does_not_depend_on_their_number(embedder, toy_pairs):
    run = config(data=DataConfig(pairs=[str(toy_pairs)], augment="crop"), batch_size=7, chunk_size=3)
    plan = load_plan(run)
    (alone,) = (StepBatches(plan, embedder, run, rank=0, world_size=1)[2],)
    shared = [StepBatches(plan, embedder, run, rank=rank, world_size=2)[2] for rank in (0, 1)]
    assert [batch.rows for batch in shared] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [len(chunk["input_ids"]) for chunk in alone.query.chunks] == [3, 3, 1]
    single = replace(run, chunk_size=1)  # chunks are pairs: they can be put in order
    found = [
        StepBatches(plan, embedder, single, rank=rank, world_size=world)[2] for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    pixels = [torch.cat([chunk["pixel_values"] for chunk in in_order(batch.positive)]) for batch in found]
    assert torch.equal(pixels[0], torch.cat(pixels[1:])), "the same crops, whoever makes them"
    assert all(np.array_equal(batch.valid_answers, alone.valid_answers) for batch in shared)


def test_broken_images_drop_their_pair_or_only_their_negative_and_are_named(embedder, broken_pairs):
    run = config(data=DataConfig(pairs=[str(broken_pairs)]), batch_size=8, chunk_size=8)
    plan = load_plan(run)
    batch = StepBatches(plan, embedder, run, rank=0, world_size=1)[1]
    pairs = plan.pairs(1)
    numbers = [int(pair.query.id.split(":")[1]) - 1 for pair in pairs]
    assert [numbers[row] for row in batch.rows] == [number for number in numbers if number not in (1, 2, 6)]
    counts = {numbers[row]: count for row, count in zip(batch.rows, batch.negative_counts, strict=True)}
    assert counts == {0: 2, 3: 1, 4: 0, 5: 0, 7: 3}
    assert [len(batch.query.chunks[0]["input_ids"]), len(batch.positive.chunks[0]["input_ids"])] == [5, 5]
    assert len(batch.negative.chunks[0]["input_ids"]) == 6
    assert batch.valid_answers.shape == (8, 8)
    folder = broken_pairs.parent
    found = {(reject["pair"], reject["side"], reject["image"], reject["reason"]) for reject in batch.rejects}
    unknown, missing = "not an image of a known format", "file not found"
    assert found == {
        (f"{folder.name}/pairs.jsonl:{row}", side, str(folder / image), reason)
        for row, side, image, reason in (
            (2, "query", "gone.png", missing),
            (3, "positive", "text.png", unknown),
            (4, "negative", "gone.png", missing),
            (4, "negative", "text.png", unknown),
            (5, "negative", "gone.png", missing),
            (7, "query", "text.png", unknown),
            (7, "positive", "gone.png", missing),
        )
    }
    assert {reject["step"] for reject in batch.rejects} == {1}
    assert json.dumps(batch.rejects)


def test_negatives_follow_the_order_of_their_pairs(embedder, broken_pairs):
    run = config(data=DataConfig(pairs=[str(broken_pairs)]), batch_size=8, chunk_size=1)
    plan = load_plan(run)
    batch = StepBatches(plan, embedder, run, rank=0, world_size=1)[1]
    pairs = plan.pairs(1)
    expected = []
    for row, count in zip(batch.rows, batch.negative_counts, strict=True):
        readable = [item for item in pairs[row].negatives if item.image is None or len(item.image.name) == len("a.png")]
        assert len(readable) == count
        expected += readable
    for chunk, other in zip(
        in_order(batch.negative), (embedder.collate([one], "item") for one in expected), strict=True
    ):
        assert all(torch.equal(chunk[name], other[name]) for name in other)


def test_crops_change_with_the_step_and_stay_with_the_seed(embedder, tmp_path):
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    image.save(tmp_path / "x.png")
    rows = [PairRow((str(number), None), (None, "x.png")) for number in range(4)]
    run = config(data=DataConfig(pairs=["a"], augment="crop"))
    plan = BatchPlan([PairTable.write([batch_of_rows(rows)], path=Path("a"), images=tmp_path)], run)
    batches = StepBatches(plan, embedder, run, rank=0, world_size=1)
    first, again, other = (batches[step].positive.chunks[0]["pixel_values"] for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("zero_stage", "lora", "world_size", "complete"),
    [(3, True, 2, True), (3, True, 1, False), (3, False, 1, True), (1, False, 2, True), (1, True, 2, False)],
)
def test_every_part_of_the_model_runs_everywhere_where_processes_share_it(
    embedder, zero_stage, lora, world_size, complete
):
    run = config(data=DataConfig(pairs=["a"]), zero_stage=zero_stage, lora=LoraConfig(enabled=lora))
    batches = StepBatches(BatchPlan([table("a", 8)], run), embedder, run, rank=0, world_size=world_size)
    chunks = [*batches[1].query.chunks, *batches[1].positive.chunks]
    assert all(("pixel_values" in chunk) == complete for chunk in chunks)


@pytest.mark.parametrize("full", [False, True])
def test_workers_prepare_the_same_batches_in_order_with_and_without_shared_memory(
    embedder, toy_pairs, monkeypatch, full
):
    def share(*args, **options):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    if full:
        monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", share)
        monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", share)
    run = config(data=DataConfig(pairs=[str(toy_pairs)], augment="crop"))
    batches = StepBatches(load_plan(run), embedder, run, rank=0, world_size=1)
    alone, shared = (list(step_loader(batches, first_step=5, last_step=11, workers=workers)) for workers in (0, 2))
    assert [batch.step for batch in alone] == [batch.step for batch in shared] == list(range(5, 12))
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.positive.chunks[0]["pixel_values"], other.positive.chunks[0]["pixel_values"])
        assert torch.equal(one.query.chunks[0]["input_ids"], other.query.chunks[0]["input_ids"])


class _Failing(StepBatches):
    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def __getitem__(self, step: int):
        if self._error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise self._error


def first(batches: StepBatches, workers: int) -> StepBatch:
    return next(step_loader(batches, first_step=1, last_step=3, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [CatalogError("a: row 1: wrong"), ImageError("truncated", "a.png")])
def test_an_error_of_ours_leaves_a_worker_as_it_was_raised(error, workers):
    with pytest.raises(type(error)) as caught:
        first(_Failing(error), workers)
    assert str(caught.value) == str(error)


def test_an_error_in_the_program_keeps_its_traceback():
    with pytest.raises(KeyError, match="Original Traceback"):
        first(_Failing(KeyError("x")), 1)


def test_a_worker_that_is_killed_is_one_line_with_a_remedy():
    with (
        pytest.raises(TrainingError, match=r"a data worker died \(.*\); .*lower data.workers") as caught,
        naming_lost_processes(),
    ):
        first(_Failing(None), 1)
    assert "\n" not in str(caught.value)


def test_a_chunk_holds_items_of_like_length(embedder, tmp_path):
    """Chunks are padded to their longest item: out of order, most of what the model reads would be padding."""
    lengths = np.random.default_rng(0).permutation(np.geomspace(1, 60, 32).astype(int))
    rows = [{"query_text": "word " * int(length), "positive_text": f"p{row}"} for row, length in enumerate(lengths)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = config(data=DataConfig(pairs=[str(tmp_path / "pairs.jsonl")]), batch_size=32, chunk_size=4)
    plan = load_plan(run)
    side = StepBatches(plan, embedder, run, rank=0, world_size=1)[1].query
    masks = [chunk["attention_mask"] for chunk in side.chunks]
    counts = torch.cat([mask.sum(dim=1) for mask in masks])
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)
    assert sum(mask.numel() for mask in masks) < 1.2 * int(counts.sum())
    in_plan = [len(pair.query.text.split()) for pair in plan.pairs(1)]
    by_row = side.in_order(counts)
    assert np.array_equal(np.argsort(by_row, kind="stable"), np.argsort(in_plan, kind="stable"))
