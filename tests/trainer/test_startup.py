"""What is said before a run starts, from shapes alone."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from fanoise.backbones import load_backbone, load_skeleton
from fanoise.embedder import EmbedderSpec, write_spec
from fanoise.errors import ConfigError
from fanoise.noise import NoiseConfig
from trainer.__main__ import main
from trainer.config import DataConfig, LoraConfig, ModelConfig, OptimizerConfig, RunConfig
from trainer.model import add_lora, check_backbone
from trainer.startup import describe_run


def config(**changes) -> RunConfig:
    values = {
        "model": ModelConfig(base="base"),
        "data": DataConfig(pairs=["a", "b"]),
        "output_dir": Path("runs/x"),
        "batch_size": 64,
        "chunk_size": 8,
        "max_steps": 10,
    }
    return RunConfig(**{**values, **changes})


def describe(backbone, settings: RunConfig, processes: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    files = [("a.jsonl", 100), ("b.jsonl", 220)]
    table = describe_run(settings, backbone, processes=processes, dtype=dtype, files=files)
    return {line[:8].strip(): line[10:] for line in table.splitlines()}


@pytest.fixture
def backbone(tiny_base):
    return load_backbone(tiny_base)


def test_the_table_says_what_is_trained_how_it_is_cut_and_how_strong_the_noise_is(backbone):
    settings = config()
    add_lora(backbone, settings.lora)
    found = describe(backbone, settings, processes=2)
    # two layers of 32 dimensions: four square attention projections, three of the MLP to and from 96
    trained = 2 * 8 * (4 * (32 + 32) + 3 * (32 + 96))
    total = sum(parameter.numel() for parameter in backbone.model.parameters())
    assert f"LoRA rank 8, alpha 16: {trained / 1e6:.2f} M parameters ({trained / total:.2%})" == found["trained"]
    assert found["backbone"].startswith("qwen2_vl, ") and found["backbone"].endswith(" M parameters, 32 dimensions")
    cut = "64 pairs = 2 process(es) × 32, 4 chunk(s) of up to 8 a side, each run twice (GradCache)"
    assert found["batch"] == f"{cut}, but the image tower once"
    for other in ({"reuse_image_features": False}, {"zero_stage": 3}):
        assert describe(backbone, config(**other), processes=2)["batch"] == cut
    assert found["data"] == "320 pairs in 2 file(s), one file a batch, 2.00 epochs"
    assert "float32, ZeRO 1" in found["steps"]
    # 0.1 / (sqrt(32) 0.02) logits; 64 rows of 32 dimensions have rank 32
    assert found["noise"] == "sublinear, strength 0.1: 0.88 logits where S = 1, at least 1.00% of a row's energy"


def test_memory_counts_parameters_gradients_and_optimizer_over_the_processes(backbone):
    total = sum(parameter.numel() for parameter in backbone.model.parameters())
    whole = LoraConfig(enabled=False)
    for stage, bytes_each in ((0, 4 + 4 + 8), (1, 4 + 4 + 12 / 4), (2, 4 + 4 / 4 + 12 / 4), (3, (4 + 4 + 12) / 4)):
        text = describe(backbone, config(lora=whole, zero_stage=stage), processes=4)["memory"]
        assert text.startswith(f"at least {total * bytes_each / 2**20:.1f} MiB a process")


def test_memory_is_that_of_a_chunk_of_the_largest_images_and_of_the_features_that_wait(backbone):
    add_lora(backbone, LoraConfig())
    tokens = 2 * 2 + 2  # the largest square within 56 x 84 pixels, and two marks
    found = describe(backbone, config(), processes=2)["memory"]
    a_chunk = 8 * tokens * 2 * 32 * 34 * 2  # rows, layers, dimensions, bytes a unit in 32 bit
    assert f", about {a_chunk / 2**20:.1f} MiB more for a chunk of 8 images at the limit, 6 tokens each; " in found
    assert found.endswith(f"of main memory up to {2 * 32 * tokens * 32 * 4 / 2**20:.1f} MiB for image features")
    assert "main memory" not in describe(backbone, config(reuse_image_features=False))["memory"]
    assert "main memory" not in describe(backbone, config(batch_size=8))["memory"], "the graphs of one chunk are kept"
    checkpointing = config(model=ModelConfig(base="base", gradient_checkpointing=True), batch_size=8)
    assert f", about {a_chunk / 17 / 2**20:.1f} MiB more" in describe(backbone, checkpointing)["memory"]


@pytest.mark.parametrize(
    ("warmup", "said"), [(9, "learning rate 0.001 after 9 steps"), (10, "at most 0.0009 "), (100, "at most 9e-05 ")]
)
def test_the_table_says_when_the_warm_up_outlasts_the_run(backbone, warmup, said):
    settings = config(optimizer=OptimizerConfig(lr=1e-3, warmup_steps=warmup))
    assert said in describe(backbone, settings)["steps"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    highest = float(re.search(r"[\d.e-]+(?= )", said.split("rate ")[-1].removeprefix("at most "))[0])
    assert max(rates) == pytest.approx(highest, rel=0.02)


def test_no_noise_is_said_in_a_word(backbone):
    from fanoise.noise import NoiseConfig

    assert describe(backbone, config(noise=NoiseConfig(strength=0)))["noise"] == "none"
    assert "NEFTune" in describe(backbone, config(noise=NoiseConfig(position="input", strength=5)))["noise"]


def test_the_noise_of_raw_rows_is_said_of_a_row_of_length_1(backbone):
    raw = NoiseConfig(features="raw")
    expected = "sublinear, strength 0.1, of a row of length 1: 0.88 logits where S = 1, at least 1.00% of its energy"
    assert describe(backbone, config(noise=raw))["noise"] == expected
    expected = "sublinear, strength 0.1, of a row of length 1: at least 1.00% of its energy"
    assert describe(backbone, config(noise=replace(raw, renormalize=False)))["noise"] == expected


def test_a_local_spectrum_has_the_rank_of_the_smallest_share_of_the_batch(backbone):
    local = config(noise=NoiseConfig(spectrum="local"), batch_size=17)
    for processes, directions in ((1, 17), (2, 8), (3, 5)):
        assert describe(backbone, local, processes=processes)["noise"].endswith(
            f"at least {0.1**2 * directions / 32:.2%} of a row's energy"
        )


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"warmup_steps": 10}, "strength 0.1: 0.88 logits"),
        ({"warmup_steps": 50}, "strength at most 0.02 of 0.1 (lower noise.warmup_steps 50): 0.18 logits"),
        ({"decay_steps": 50}, "strength at most 0.018 of 0.1 (lower noise.decay_steps 50): 0.16 logits"),
        (
            {"warmup_steps": 10, "decay_steps": 10},
            "strength at most 0.05 of 0.1 (lower noise.warmup_steps 10 and noise.decay_steps 10): 0.44 logits",
        ),
    ],
)
def test_the_table_says_when_the_schedule_never_reaches_the_strength(backbone, schedule, said):
    assert f"sublinear, {said} where S = 1" in describe(backbone, config(noise=NoiseConfig(**schedule)))["noise"]


@pytest.mark.parametrize("targets", ["nothing_like_it", "language_model.layers.0.self_attn"])
def test_lora_targets_without_a_match_list_what_there_is(backbone, targets):
    with pytest.raises(ConfigError) as error:
        add_lora(backbone, LoraConfig(targets=targets))
    message = str(error.value)
    assert targets in message and "\n" not in message
    assert "model.language_model.layers.N.self_attn.q_proj" in message
    assert "model.visual.blocks.N.attn.qkv" in message


@pytest.mark.parametrize("targets", ["lm_head", r".*(lm_head|layers\.0\.self_attn\.q_proj)"])
def test_what_no_embedding_depends_on_is_no_lora_target(backbone, targets):
    with pytest.raises(ConfigError, match=r"cannot be adapted \(no embedding depends on lm_head\)") as error:
        add_lora(backbone, LoraConfig(targets=targets))
    assert "lm_head" not in str(error.value).partition("one of: ")[2]


def test_dora_adds_a_magnitude_for_every_output(backbone, tiny_base):
    add_lora(backbone, LoraConfig())
    plain = sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
    other = load_backbone(tiny_base)
    add_lora(other, LoraConfig(dora=True))
    outputs = 2 * (4 * 32 + 2 * 96 + 32)
    assert sum(p.numel() for p in other.model.parameters() if p.requires_grad) == plain + outputs


@pytest.fixture
def seven_billion(tmp_path) -> Path:
    """Nothing but the config.json of a Qwen2-VL-7B."""
    folder = tmp_path / "Qwen2-VL-7B"
    transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
    ).save_pretrained(folder)
    return folder


def test_dry_run_of_a_7b_needs_its_config_only_and_writes_nothing(seven_billion, toy_pairs, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [f"--model.base={seven_billion}", f"--data.pairs=[{toy_pairs}]", f"--output_dir={run}"]
    assert main([*arguments, "--batch_size=32", "--dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"backbone  qwen2_vl, 8\.\d\d B parameters, 3584 dimensions", out)
    assert "LoRA rank 8, alpha 16: 20.19 M parameters" in out
    assert "48 pairs in 1 file(s)" in out
    assert not run.exists()
    assert next(load_skeleton(seven_billion).model.parameters()).device.type == "meta"


def test_dry_run_finds_bad_input_like_a_run(seven_billion, toy_pairs, tmp_path, capsys):
    arguments = [f"--model.base={seven_billion}", f"--data.pairs=[{toy_pairs}]", f"--output_dir={tmp_path / 'run'}"]
    arguments.append("--batch_size=32")
    one = tmp_path / "one.jsonl"
    one.write_text('{"query_text": "a", "positive_text": "b"}\n')
    for change, expected in (
        ("--lora.targets=nothing", "matches no module"),
        ("--batch_size=64", "pairs.jsonl; set batch_size to at most 48\n"),
        (f"--validation.pairs={one}", "one.jsonl: 1 pair, at least 2 are needed to rank; "),
        (f"--data.pairs={one}", f"than the 1 pair of {one}; at least 2 are needed, each other's negatives\n"),
        (f"--data.pairs=[{one}, {toy_pairs}]", "; leave that file out, or set data.sub_batch_size to at most 1\n"),
        ("--model.base=nowhere", "no such folder"),
        ("--loss.dropout_pairs=1", "loss.dropout_pairs needs dropout"),
        ("--model.pooling=native", "model.pooling must be one of last, mean, prompt for this backbone, got native"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--dry_run=true", change])
        assert stopped.value.code == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("limit", [[], ["--model.max_pixels=10000"]])
def test_dry_run_refuses_an_adapter_as_base_and_names_its_base(tiny_base, toy_pairs, tmp_path, capsys, limit):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_spec(adapter, EmbedderSpec(base_model="../base"))
    arguments = [f"--model.base={adapter}", f"--data.pairs={toy_pairs}", "--output_dir=x", "--batch_size=32", *limit]
    with pytest.raises(SystemExit):
        main([*arguments, "--dry_run"])
    assert "is an adapter; start from its base '../base'" in capsys.readouterr().err


def test_noise_on_token_embeddings_needs_a_language_model(backbone):
    noisy = config(noise=NoiseConfig(position="input"))
    check_backbone(noisy, backbone)
    without = SimpleNamespace(language_model=None, model=backbone.model)
    with pytest.raises(ConfigError, match=r"noise\.position input needs a language model"):
        check_backbone(noisy, without)
    check_backbone(config(noise=NoiseConfig(position="input", strength=0)), without)


def test_memory_of_a_7b_is_its_bf16_weights_and_a_slope(seven_billion):
    """About 15.4 GiB of bf16 weights, and a slope for the activations."""
    backbone = load_skeleton(seven_billion)
    add_lora(backbone, LoraConfig())
    found = describe(backbone, config(), dtype=torch.bfloat16)["memory"]
    first, slope = (float(number) for number in re.findall(r"(\d+\.\d+) GiB", found))
    assert 15 < first < 17
    assert slope == pytest.approx(1000 * 28 * 3584 * 34 / 2**30, abs=0.01)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_is_bf16_where_the_device_computes_in_it(monkeypatch, native, dtype):
    """PyTorch counts a device that emulates it, as V100 and T4 do: slower than fp32, and without fused attention."""
    from trainer.engine import resolve_dtype

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert resolve_dtype(config()) is dtype
