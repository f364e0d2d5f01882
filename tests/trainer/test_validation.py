"""Held-out retrieval while training: the figures, the history, and what a run does with them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fanoise.catalog import Item
from fanoise.embedder import Embedder
from fanoise.errors import CatalogError
from trainer.config import DataConfig, ModelConfig, RunConfig, ValidationConfig
from trainer.pair_table import Pair
from trainer.pairs import valid_answers
from trainer.validation import HeldOut, History, ranking_metrics, read_held_out, validate


def unit(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_metrics_equal_a_plain_loop_and_other_right_answers_do_not_compete():
    queries, positives = unit(20, 0), unit(20, 1)
    answers = np.zeros((20, 20), dtype=bool)
    answers[0, 1] = answers[1, 0] = answers[5, 9] = True
    ranks = []
    for i in range(20):
        own = float(queries[i] @ positives[i])
        rivals = [j for j in range(20) if j != i and not answers[i, j]]
        ranks.append(1 + sum(float(queries[i] @ positives[j]) >= own for j in rivals))
    found = ranking_metrics(queries, positives, answers)
    assert found["recall@1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_a_collapsed_model_does_not_look_perfect():
    same = torch.ones(5, 6) / 6**0.5
    found = ranking_metrics(same, same, np.zeros((5, 5), dtype=bool))
    assert found == pytest.approx({"recall@1": 0.0, "mrr": 0.2})
    assert ranking_metrics(same * math.nan, same, np.zeros((5, 5), dtype=bool)) == pytest.approx(found)


def test_history_knows_the_best_and_when_patience_is_over(tmp_path):
    history = History(tmp_path, ValidationConfig(patience=2))
    over = []
    for step, value in enumerate([0.1, 0.4, 0.4, 0.3, 0.5], start=1):
        history.add({"step": step, "recall@1": value, "mrr": 0.0})
        over.append(history.is_over)
    assert over == [False, False, False, True, False]
    again = History(tmp_path, ValidationConfig(patience=2))
    assert again.rows == history.rows
    assert again.best["step"] == 5
    assert not History(tmp_path, ValidationConfig()).is_over
    assert History(tmp_path / "none", ValidationConfig(patience=1)).best is None


def test_unreadable_pairs_are_left_out_and_counted(toy_pairs):
    image = toy_pairs.parent / "0.png"
    good = [Pair(query=Item(text=str(i)), positive=Item(image=image)) for i in range(3)]
    bad = Pair(query=Item(text="x"), positive=Item(image=toy_pairs))
    (found,), note = read_held_out([("toy", [*good, bad])])
    assert (found.name, found.pairs) == ("toy", good)
    assert note.startswith("1 held-out pair(s) have a broken image and are left out (image ")
    assert str(toy_pairs) in note
    assert read_held_out([("toy", good)])[1] == ""
    with pytest.raises(CatalogError, match=r"toy: 1 of 2 pairs can be read \(image .*\), at least 2 are needed"):
        read_held_out([("toy", [good[0], bad])])


class PlainEngine:
    """What `validate` needs of a DeepSpeed engine."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, batch):
        return self.module(batch)


def test_validation_is_noise_free_retrieval_by_the_embedder(tiny_base):
    embedder = Embedder.from_pretrained(tiny_base)
    embedder.module.train()
    pairs = [
        Pair(query=Item(text=f"a {name} square"), positive=Item(text=f"{name} {i}"))
        for i, name in enumerate(["red", "blue", "green", "yellow", "red"])
    ]
    config = RunConfig(
        model=ModelConfig(base="x"), data=DataConfig(pairs=["x"]), output_dir=Path("x"), chunk_size=2, batch_size=4
    )
    found = validate(PlainEngine(embedder.module), embedder, [HeldOut("a", pairs), HeldOut("b", pairs[:3])], config)
    assert embedder.module.training, "the mode is given back"
    for name, part in (("a", pairs), ("b", pairs[:3])):
        vectors = [
            torch.from_numpy(embedder.encode([getattr(pair, side) for pair in part], role=role))
            for side, role in (("query", "query"), ("positive", "item"))
        ]
        assert found["files"][name] == ranking_metrics(*vectors, valid_answers(part))
    assert found["mrr"] == pytest.approx((found["files"]["a"]["mrr"] + found["files"]["b"]["mrr"]) / 2)


def test_a_run_stops_early_and_publishes_its_best_weights(tiny_base, toy_pairs, tmp_path):
    """A learning rate that ruins the model: what is published is what ranked best, not what came last."""
    from tests.trainer.test_train import finish, options, start

    run = tmp_path / "run"
    changes = {
        "validation.pairs": f"[{toy_pairs}]",
        "validation.every": 2,
        "validation.patience": 2,
        "validation.metric": "mrr",
        "optimizer.lr": 0.5,
        "lora.dropout": 0,
        "max_steps": 40,
    }
    finish(start(options(tiny_base, toy_pairs, run, **changes)))
    rows = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["mrr"])
    assert rows.index(best) == len(rows) - 3, "two more, and then it stopped"
    assert steps[-1] == rows[-1]["step"] < 40
    embedder = Embedder.from_pretrained(run)
    lines = [json.loads(line) for line in toy_pairs.read_text().splitlines()]
    pairs = [
        Pair(query=Item(text=line["query_text"]), positive=Item(image=toy_pairs.parent / line["positive_image"]))
        for line in lines
    ]
    vectors = [
        torch.from_numpy(embedder.encode([getattr(pair, side) for pair in pairs], role=role))
        for side, role in (("query", "query"), ("positive", "item"))
    ]
    assert ranking_metrics(*vectors, valid_answers(pairs))["mrr"] == pytest.approx(best["mrr"], abs=0.02)
    assert f"at step {best['step']}; these weights" in (run / "README.md").read_text()
