"""The embedder of a real run folder: two-layer Qwen2-VL with LoRA adapters that have dropout, trained with noise."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fanoise.catalog import Item
from fanoise.embedder import Embedder, EmbedderSpec, base_reference, read_spec, weights_digest, write_spec
from fanoise.errors import ArtifactError, ConfigError, ImageError

ITEMS = [
    Item(id="1", text="a red square"),
    Item(id="2", image=Image.new("RGB", (60, 80), "blue")),
    Item(id="3", text="green, on the left of something", image=Image.new("RGB", (80, 60), "green")),
    Item(id="4", text="a yellow square number 4"),
    Item(id="5"),
]


@pytest.fixture(scope="module")
def embedder(tiny_run: Path) -> Embedder:
    return Embedder.from_pretrained(tiny_run)


@pytest.fixture(scope="module")
def vectors(embedder: Embedder) -> np.ndarray:
    return embedder.encode(ITEMS)


@pytest.fixture
def moved(tiny_base: Path, tiny_run: Path, tmp_path: Path) -> Path:
    """The run folder, copied together with its base."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "else where" / "run 2"))
    shutil.copytree(tiny_base, os.path.normpath(run / str(read_spec(tiny_run).base_model)))
    return run


@pytest.fixture
def alone(tiny_run: Path, tmp_path: Path) -> Path:
    """The run folder, copied without its base."""
    return Path(shutil.copytree(tiny_run, tmp_path / "deep" / "er" / "run"))


@pytest.fixture
def own_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change_weights(file: Path) -> None:
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, file, metadata={"format": "pt"})


def change_settings(file: Path, **entries: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def change_spec(folder: Path, **changes: object) -> None:
    write_spec(folder, replace(read_spec(folder), **changes))


# vectors


def test_vectors_are_unit_rows_in_float32(embedder, vectors):
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(ITEMS), embedder.dim))
    assert np.abs(np.linalg.norm(vectors.astype(float), axis=1) - 1).max() < 1e-6
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=-1) + np.eye(len(ITEMS))
    assert distances.min() > 1e-2


def test_the_prompts_of_the_roles_make_different_vectors(embedder, vectors):
    as_queries = embedder.encode(ITEMS, role="query")
    assert (as_queries * vectors).sum(axis=1).max() < 1 - 1e-4


def test_an_unknown_role_is_an_error(embedder):
    with pytest.raises(ConfigError, match="role must be 'query' or 'item', got 'document'"):
        embedder.encode(ITEMS, role="document")


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_does_not_matter(embedder, vectors, batch_size):
    assert np.abs(embedder.encode(ITEMS, batch_size=batch_size) - vectors).max() <= 1e-5


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_an_error(embedder, batch_size):
    with pytest.raises(ConfigError, match=f"batch_size must be >= 1, got {batch_size}"):
        embedder.encode(ITEMS, batch_size=batch_size)


def test_no_items_give_no_rows(embedder):
    assert embedder.encode([]).shape == (0, embedder.dim)


def test_a_bad_image_is_named(embedder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.png': not an image"):
        embedder.encode([*ITEMS, Item(image=tmp_path / "bad.png")])


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_every_shape_of_image_is_embedded(embedder, size):
    assert np.isfinite(embedder.encode([Item(image=Image.new("RGB", size, "red"))])).all()


def test_a_path_and_the_opened_image_give_the_same_vector(embedder, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    pair = embedder.encode([Item(image=tmp_path / "a.png"), Item(image=image), Item(image=str(tmp_path / "a.png"))])
    assert np.abs(pair - pair[0]).max() <= 1e-6


# noise and dropout


def test_encoding_is_free_of_noise_and_dropout_in_training_mode(embedder, vectors):
    assert embedder.noise["strength"] > 0
    dropout = [module for module in embedder.module.modules() if isinstance(module, torch.nn.Dropout)]
    assert {module.p for module in dropout} >= {0.2}
    embedder.module.train()
    try:
        batch = embedder.collate(ITEMS, "item")
        with torch.no_grad():
            trained_mode = embedder.module(batch)
        assert (trained_mode.numpy() - vectors).max() > 1e-3  # dropout acts in training mode …
        assert np.array_equal(embedder.encode(ITEMS), vectors)  # … and never when encoding
        assert np.array_equal(embedder.encode(ITEMS), vectors)
    finally:
        embedder.module.eval()


@pytest.mark.parametrize("outcome", ["fine", "bad image"])
def test_each_submodule_keeps_its_mode(embedder, outcome):
    modules = dict(embedder.module.named_modules())
    for number, module in enumerate(modules.values()):
        module.training = number % 3 == 0
    before = {name: module.training for name, module in modules.items()}
    try:
        if outcome == "fine":
            embedder.encode(ITEMS)
        else:
            with pytest.raises(ImageError):
                embedder.encode([Item(image="missing.png")])
        assert {name: module.training for name, module in modules.items()} == before
    finally:
        embedder.module.eval()


def test_training_goes_on_after_encoding(own_base):
    embedder = Embedder.from_pretrained(own_base)
    embedder.encode(ITEMS)
    embedder.module(embedder.collate(ITEMS, "item"))[:, 0].sum().backward()
    gradient = next(embedder.module.parameters()).grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()


def test_length_counts_the_bytes_of_text_and_the_area_of_an_image_up_to_their_limits(own_base):
    spec = EmbedderSpec(max_tokens=10, max_pixels=78_400)
    embedder = Embedder(Embedder.from_pretrained(own_base).backbone, spec, path=own_base)
    assert embedder.length("x" * 20, 0) == embedder.length("ä" * 10, 0) == 5
    assert embedder.length("x" * 1000, 0) == 10
    assert embedder.length(None, 0) == 0
    assert embedder.length("x" * 8, 56 * 28) == 4
    assert embedder.length(None, 10**9) == 100


# folders


def test_a_saved_run_gives_the_same_vectors_bit_for_bit(embedder, vectors, tiny_run):
    again = Embedder.from_pretrained(str(tiny_run))
    assert np.array_equal(again.encode(ITEMS), vectors)
    assert again.fingerprint == embedder.fingerprint
    assert (again.name, again.dim) == ("tiny_run", 32)


def test_the_adapter_acts(vectors, tiny_base):
    assert np.abs(Embedder.from_pretrained(tiny_base).encode(ITEMS) - vectors).max() > 1e-3


def test_saving_again_gives_the_same_vectors_and_fingerprint(embedder, vectors, tiny_run):
    copy = tiny_run.parent / "copy"
    embedder.save_pretrained(copy)
    again = Embedder.from_pretrained(copy)
    assert np.array_equal(again.encode(ITEMS), vectors)
    assert again.fingerprint == embedder.fingerprint
    assert again.spec == embedder.spec


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_whole_checkpoint_round_trips(own_base, tmp_path, pooling):
    spec = EmbedderSpec(prompts={"query": "q: ", "item": ""}, pooling=pooling, max_pixels=28 * 56, max_tokens=9)
    first = Embedder(Embedder.from_pretrained(own_base).backbone, spec, path=own_base)
    first.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    assert again.spec == spec
    for role in ("query", "item"):
        assert np.array_equal(again.encode(ITEMS, role=role), first.encode(ITEMS, role=role))
    assert again.fingerprint == first.fingerprint


def test_a_run_moved_together_with_its_base_works(moved, embedder, vectors):
    again = Embedder.from_pretrained(moved)
    assert np.array_equal(again.encode(ITEMS), vectors)
    assert again.fingerprint == embedder.fingerprint


def test_a_run_moved_alone_says_where_it_looked_and_takes_a_base(alone, tiny_base, embedder, vectors):
    looked = alone / str(read_spec(alone).base_model)
    with pytest.raises(ArtifactError, match=r"move it along with the run, or pass base=\.\.\.") as error:
        Embedder.from_pretrained(alone)
    assert f"looked in {looked}" in str(error.value)
    again = Embedder.from_pretrained(alone, base=tiny_base)
    assert np.array_equal(again.encode(ITEMS), vectors)
    assert again.fingerprint == embedder.fingerprint


def test_another_base_is_refused(alone, moved, own_base):
    change_weights(own_base / "model.safetensors")
    expected = read_spec(alone).base_weights
    with pytest.raises(ArtifactError, match=f"not the base this adapter was trained on .*expected {expected}"):
        Embedder.from_pretrained(alone, base=own_base)
    change_weights(moved / str(read_spec(moved).base_model) / "model.safetensors")
    with pytest.raises(ArtifactError, match="not the base this adapter was trained on"):
        Embedder.from_pretrained(moved)
    with pytest.raises(ArtifactError, match=r"no such base.*weights None"):
        Embedder.from_pretrained(alone, base="no such base")


def test_a_base_is_named_relative_to_the_run_through_links(tmp_path):
    (tmp_path / "big disk" / "runs").mkdir(parents=True)
    (tmp_path / "project" / "base").mkdir(parents=True)
    (tmp_path / "project" / "runs").symlink_to(tmp_path / "big disk" / "runs")
    run = tmp_path / "project" / "runs" / "a"
    run.mkdir()
    reference = base_reference(tmp_path / "project" / "base", run)
    assert not Path(reference).is_absolute()
    assert (run / reference).samefile(tmp_path / "project" / "base")
    assert base_reference("Qwen/Qwen2-VL-2B-Instruct", run) == "Qwen/Qwen2-VL-2B-Instruct"


# what is missing or damaged


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model.safetensors"])
def test_a_folder_without_weights_is_refused(moved, own_base, name):
    folder = moved if name.startswith("adapter") else own_base
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=r"safetensors.*was the training run finished\?") as error:
        Embedder.from_pretrained(folder)
    assert str(folder) in str(error.value)


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no weights"):
        Embedder.from_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"nowhere: no such folder"):
        Embedder.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_truncated_adapter_is_refused(moved, name):
    content = (moved / name).read_bytes()
    (moved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="the adapter is damaged or of another model") as error:
        Embedder.from_pretrained(moved)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_size_is_refused(moved):
    file = moved / "adapter_model.safetensors"
    tensors = {name: torch.cat([tensor, tensor], dim=-1).contiguous() for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="the adapter is damaged or of another model"):
        Embedder.from_pretrained(moved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged"),
        ('{"format_version": 2, "promp', "damaged"),
        ("\ufffe\u0000", "damaged"),
        ("[]", "expected an object"),
        ("null", "expected an object"),
        ("{}", "expected format_version 2"),
        ('{"format_version": 3}', "expected format_version 2"),
        ('{"format_version": 2, "colour": "red", "size": 3}', "unknown entries colour, size"),
        ('{"format_version": 2, "pooling": "first"}', "pooling must be one of last, mean, prompt, native, got 'first'"),
        ('{"format_version": 2, "max_tokens": "many"}', "damaged"),
        ('{"format_version": 2, "max_tokens": 0}', "max_tokens must be >= 1"),
        ('{"format_version": 2, "max_pixels": 0}', "max_pixels must be >= 1"),
        ('{"format_version": 2, "prompts": {"query": ""}}', "prompts must have the keys query and item"),
        ('{"format_version": 2, "prompts": ["query", "item"]}', "prompts must have the keys query and item"),
        ('{"format_version": 2, "prompts": {"query": 1, "item": 2}}', "prompts must be text"),
        ('{"format_version": 2, "noise": 3}', "noise must map"),
    ],
)
def test_a_damaged_embedder_file_is_named(own_base, content, message):
    (own_base / "embedder.json").write_text(content)
    with pytest.raises(ArtifactError, match=message) as error:
        Embedder.from_pretrained(own_base)
    assert str(own_base / "embedder.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_without_embedder_file_asks_for_its_base(moved):
    (moved / "embedder.json").unlink()
    with pytest.raises(ArtifactError, match=r"names no base model for this adapter; pass base=\.\.\."):
        Embedder.from_pretrained(moved)


def test_a_checkpoint_without_embedder_file_has_the_defaults(own_base):
    embedder = Embedder.from_pretrained(own_base)
    backbone = embedder.backbone
    assert embedder.spec == EmbedderSpec(prompts=backbone.prompts, pooling=backbone.poolings[0])
    assert embedder.noise == {}


# the fingerprint


def test_the_fingerprint_names_its_parts_and_holds_no_path(embedder, tiny_run):
    assert set(embedder.fingerprint) == {"weights", "processor", "prompts", "pooling", "dim"}
    assert (embedder.fingerprint["pooling"], embedder.fingerprint["dim"]) == ("last", "32")
    assert all(len(embedder.fingerprint[part]) == 16 for part in ("weights", "processor", "prompts"))
    assert str(tiny_run) not in json.dumps(embedder.fingerprint)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"prompts": {"query": "Find the matching item: ", "item": "Represent this item:"}}, "prompts"),
        ({"pooling": "mean"}, "pooling"),
        ({"max_pixels": 28 * 56}, "processor"),
        ({"max_tokens": 100}, "processor"),
        ({"noise": {"strength": 0.3}}, None),
    ],
)
def test_a_changed_setting_changes_its_part_of_the_fingerprint_only(moved, embedder, changes, part):
    change_spec(moved, **changes)
    changed = Embedder.from_pretrained(moved).fingerprint
    assert [name for name in changed if changed[name] != embedder.fingerprint[name]] == ([part] if part else [])


def test_changed_weights_change_the_fingerprint(moved, embedder):
    change_weights(moved / "adapter_model.safetensors")
    changed = Embedder.from_pretrained(moved).fingerprint
    assert [name for name in changed if changed[name] != embedder.fingerprint[name]] == ["weights"]


@pytest.mark.parametrize(
    ("file", "entry", "value"),
    [("adapter_config.json", "lora_alpha", 64), ("adapter_config.json", "use_rslora", True)],
)
def test_how_weights_act_is_part_of_the_fingerprint(moved, embedder, file, entry, value):
    change_settings(moved / file, **{entry: value})
    changed = Embedder.from_pretrained(moved).fingerprint
    assert [name for name in changed if changed[name] != embedder.fingerprint[name]] == ["weights"]


def test_a_changed_config_changes_the_fingerprint_and_is_another_base(own_base, moved):
    before = Embedder.from_pretrained(own_base).fingerprint
    change_settings(own_base / "config.json", transformers_version="5.0.0", _name_or_path="elsewhere")
    assert Embedder.from_pretrained(own_base).fingerprint == before, "who saved it changes no vector"
    config = json.loads((own_base / "config.json").read_text())
    change_settings(own_base / "config.json", text_config={**config["text_config"], "rms_norm_eps": 0.5})
    changed = Embedder.from_pretrained(own_base).fingerprint
    assert [name for name in changed if changed[name] != before[name]] == ["weights"]
    with pytest.raises(ArtifactError, match="not the base this adapter was trained on"):
        Embedder.from_pretrained(moved, base=own_base)


def test_the_order_of_layers_is_part_of_the_fingerprint_and_that_of_target_modules_is_not(own_base, moved, embedder):
    change_settings(own_base / "config.json", layer_types=["full", "sliding"])
    first = weights_digest(own_base)
    change_settings(own_base / "config.json", layer_types=["sliding", "full"])
    assert weights_digest(own_base) != first
    names = ["q_proj", "v_proj"]
    change_settings(moved / "adapter_config.json", target_modules=names)
    first = weights_digest(moved)
    change_settings(moved / "adapter_config.json", target_modules=names[::-1])
    assert weights_digest(moved) == first


def test_a_damaged_config_of_the_base_is_named(own_base, moved):
    file = own_base / "config.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ArtifactError, match=r"config\.json: damaged"):
        Embedder.from_pretrained(moved, base=own_base)


def test_a_changed_tokenizer_changes_the_fingerprint(moved, embedder):
    file = moved / str(read_spec(moved).base_model) / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    file.write_text(json.dumps(tokenizer))
    changed = Embedder.from_pretrained(moved).fingerprint
    assert [name for name in changed if changed[name] != embedder.fingerprint[name]] == ["processor"]


def test_weights_in_the_older_file_format_are_known_by_content_too(own_base, tmp_path):
    tensors = load_file(own_base / "model.safetensors")
    torch.save(tensors, own_base / "pytorch_model.bin")
    (own_base / "model.safetensors").unlink()
    copy = shutil.copytree(own_base, tmp_path / "copy")
    first = Embedder.from_pretrained(own_base).fingerprint
    assert Embedder.from_pretrained(copy).fingerprint == first
    tensors["model.norm.weight"] += 0.1
    torch.save(tensors, copy / "pytorch_model.bin")
    assert Embedder.from_pretrained(copy).fingerprint["weights"] != first["weights"]


# the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts folders into the cache of a hub that cannot be reached, as OWNER/NAME, under a commit of forty times "a"."""
    import huggingface_hub

    cache = tmp_path / "hub"
    for name, value in (("HF_HUB_CACHE", str(cache)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)

    def put(folder: Path, hub_id: str) -> None:
        repository = cache / f"models--{hub_id.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)

    return put


COMMIT = "a" * 40


def test_a_run_on_the_hub_is_the_run_that_was_pushed(hub, own_base, tmp_path):
    spec = EmbedderSpec(prompts={"query": "q: ", "item": ""}, pooling="mean", max_tokens=9)
    local = Embedder(Embedder.from_pretrained(own_base).backbone, spec, path=own_base)
    local.save_pretrained(tmp_path / "saved")
    hub(tmp_path / "saved", "me/mine")
    found = Embedder.from_pretrained("me/mine")
    assert found.spec == spec
    assert np.array_equal(found.encode(ITEMS), local.encode(ITEMS))
    assert (found.name, found.path) == ("mine", f"me/mine@{COMMIT}"), "an index names what it was made with"
    again = Embedder.from_pretrained(found.path)
    assert (again.name, again.path, again.fingerprint) == (found.name, found.path, found.fingerprint)


def test_an_adapter_on_the_hub_takes_its_base_from_there_in_its_revision(hub, alone, tiny_base, vectors):
    hub(tiny_base, "some/base")
    change_spec(alone, base_model="some/base", base_revision=COMMIT, base_weights=None)
    hub(alone, "me/mine")
    assert np.array_equal(Embedder.from_pretrained("me/mine").encode(ITEMS), vectors)
    change_spec(alone, base_revision="b" * 40)
    with pytest.raises(ArtifactError, match="some/base@b"):
        Embedder.from_pretrained(alone)


@pytest.mark.parametrize("path", ["me/other", "/no/such/folder"])
def test_neither_a_folder_nor_on_the_hub(hub, path):
    with pytest.raises(ArtifactError, match=rf"{path}: no such folder.*or a hub id"):
        Embedder.from_pretrained(path)


def test_a_hub_id_has_no_digest_of_files():
    assert weights_digest("Qwen/Qwen2-VL-2B-Instruct") is None
