"""The model card says what was trained on what, also where the settings only have a pattern for it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fanoise.noise import NoiseConfig
from trainer.config import DataConfig, LoraConfig, LossConfig, ModelConfig, RunConfig
from trainer.model_card import model_card

SHARD = "original-00000-of-00001.parquet"


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(
        model=ModelConfig(base="Qwen/Qwen2-VL-2B-Instruct"),
        data=DataConfig(pairs=[f"data/MMEB-train/*/{SHARD}"]),
        output_dir=Path("runs/fanoise"),
    )


def card(config: RunConfig, tmp_path: Path, *, sets: tuple[str, ...] = ("WebQA", "N24News"), steps: int = 2) -> str:
    metrics = tmp_path / "metrics.jsonl"
    losses = (3.0, 1.0) * (steps // 2)
    metrics.write_text("".join(json.dumps({"loss": loss, "seconds": 2.0}) + "\n" for loss in losses))
    files = [(f"data/MMEB-train/{name}/{SHARD}", 1000 * number) for number, name in enumerate(sets, start=1)]
    return model_card(config, metrics, dim=1536, device="cpu", files=files, best=None)


def test_a_base_in_a_revision_is_named_as_the_hub_knows_it(config, tmp_path):
    text = card(replace(config, model=ModelConfig(base="Qwen/Qwen2-VL-2B-Instruct@895c3a4")), tmp_path)
    assert "\nbase_model: Qwen/Qwen2-VL-2B-Instruct\n" in text and "from `Qwen2-VL-2B-Instruct`." in text


def test_facts_of_the_run_are_in_the_table(config, tmp_path):
    text = card(config, tmp_path)
    assert "\nbase_model: Qwen/Qwen2-VL-2B-Instruct\n" in text
    for fact in (
        "| noise in training | FANoise, sublinear, strength 0.1 (0.13 logits), sides: both |",
        "| weights trained | LoRA, rank 8, alpha 16 |",
        "| steps × pairs | 2 × 256 |",
        "| pairs from | WebQA (1,000), N24News (2,000) |",
        "| mean loss of the last 2 steps | 2.0000 |",
        "| time | 4 s on cpu |",
    ):
        assert fact in text
    many = card(config, tmp_path, sets=tuple(f"Set{number}" for number in range(30)))
    assert "Set23 (24,000) and 6 more files |" in many and "Set24" not in many


def test_what_was_set_otherwise_is_said(config, tmp_path):
    config = replace(
        config,
        noise=NoiseConfig(features="raw", renormalize=False, spectrum="local"),
        lora=LoraConfig(dora=True, alpha=64, dropout=0.1),
        loss=LossConfig(hardness=9),
    )
    text = card(config, tmp_path)
    assert (
        "strength 0.1, sides: both, spectrum of each process's own rows, on raw features, not normalized again |"
    ) in text
    assert "| DoRA, rank 8, alpha 64, dropout 0.1 |" in text
    assert "negatives weighted by hardness 9 (LLaVE)" in text
    assert "none (baseline)" in card(replace(config, noise=NoiseConfig(strength=0)), tmp_path)


@pytest.mark.parametrize(
    ("schedule", "steps", "said"),
    [
        ({"warmup_steps": 4}, 12, "strength 0.1 (0.13 logits) rising over the first 4 steps,"),
        ({"warmup_steps": 20}, 12, "strength at most 0.06 (0.08 logits) rising over the first 12 steps,"),
        ({"decay_steps": 4}, 12, "strength 0.1 (0.13 logits) falling to 0 over the last 4 steps,"),
        ({"decay_steps": 24}, 12, "strength at most 0.046 (0.06 logits) falling to 0 over the last 12 steps,"),
        ({"decay_steps": 4}, 8, "strength 0.1 (0.13 logits), sides"),
        ({"decay_steps": 4}, 10, "strength 0.1 (0.13 logits) falling over the last 2 steps,"),
        (
            {"warmup_steps": 2, "decay_steps": 4},
            12,
            "strength 0.1 (0.13 logits) rising over the first 2 steps, falling to 0 over the last 4 steps,",
        ),
    ],
)
def test_the_schedule_is_that_of_the_steps_taken(config, tmp_path, schedule, steps, said):
    """Of twelve, of which early stopping may take some."""
    config = replace(config, noise=NoiseConfig(**schedule), max_steps=12)
    assert f"| FANoise, sublinear, {said}" in card(config, tmp_path, steps=steps)


def test_losses_are_the_mean_of_the_last_steps_there_are(config, tmp_path):
    assert "| mean loss of the last 20 steps | 2.0000 |" in card(config, tmp_path, steps=30)


def test_the_example_loads_from_where_the_model_is_pushed(config, tmp_path):
    assert 'from_pretrained("fanoise")' in card(config, tmp_path)
    assert 'from_pretrained("me/mine")' in card(replace(config, push_to_hub="me/mine"), tmp_path)
