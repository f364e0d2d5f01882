"""The whole room with a real, tiny Qwen2-VL instead of the fake of the other tests."""

import json

import pytest

from demo.base import BaseSize, save_random_base
from index.__main__ import main
from index.search import Index

TINY = BaseSize(hidden_size=64, layers=1, heads=2, vision_size=64, vision_layers=1, vision_heads=2, vocabulary=300)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save_random_base(folder, ["thing number 1 2 3 4 5 6 7 8 9"], size=TINY, seed=0)
    return folder


def test_build_and_search_with_a_real_model(checkpoint, new_catalog, tmp_path, capsys):
    out = str(tmp_path / "index")
    build = [
        "build",
        "--embedder",
        str(checkpoint),
        "--catalog",
        str(new_catalog(n=12)),
        "--out",
        out,
        "--batch-size",
        "5",
    ]
    assert main([*build, "--no-progress"]) == 0
    capsys.readouterr()
    assert main(["search", "--index", out, "--text", "thing", "--where", "colour=green", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sorted(hit["id"] for hit in answer["hits"]) == ["g1", "g5", "g9"]
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.001 <= score <= 1.001 for score in scores)
    assert main(["verify", "--index", out, "--embedder", str(checkpoint)]) == 0
    assert Index.open(out).manifest.dim == 64


def test_changed_prompts_are_another_embedder(checkpoint, new_catalog, tmp_path):
    from dataclasses import replace

    from fanoise.embedder import Embedder
    from fanoise.errors import ArtifactError
    from index.build import build_index

    embedder = Embedder.from_pretrained(checkpoint)
    build_index(embedder, new_catalog(n=4, images=1), tmp_path / "index", progress=False)
    prompts = {"query": "Q: ", "item": "I: "}
    other = Embedder(embedder.backbone, replace(embedder.spec, prompts=prompts), path=checkpoint)
    with pytest.raises(ArtifactError, match="built with other prompts"):
        Index.open(tmp_path / "index", embedder=other)
