"""What a person types, and what they are told when it is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from fanoise.errors import ConfigError
from trainer.command_line import parse

ROOT = Path(__file__).parents[2]
NEEDED = ["--model.base", "base", "--data.pairs", "a.csv", "--output_dir", "runs/x"]


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse([*NEEDED, *arguments])
    return str(error.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("noise.strenght", "noise.strength"),
        ("nosie.strength", "noise.strength"),
        ("batchsize", "batch_size"),
        ("lr", "optimizer.lr"),
        ("data.batch_size", "batch_size"),
        ("warmup_steps", "noise.warmup_steps or optimizer.warmup_steps"),
    ],
)
def test_unknown_setting_names_what_was_meant(written, meant):
    for arguments in ((f"--{written}", "1"), (f"--{written}=1",)):
        assert refusal(*arguments) == f"unknown setting '--{written}'; did you mean {meant}?"


def test_unknown_setting_that_is_near_nothing_points_to_help():
    assert refusal("--xyzzy", "1") == "unknown setting '--xyzzy'; --help lists them all"
    assert "'-b'" in refusal("-b", "4")


def test_unknown_key_of_a_recipe_names_the_file_and_what_was_meant(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {base: demo/checkpoint}\ndata: {pair: [a.csv]}\noutput_dir: runs/x\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown setting 'data\.pair'; did you mean data\.pairs\?"):
        parse(["--config", str(recipe)])


@pytest.mark.parametrize(("content", "expected"), [("a: [", "not YAML"), ("- 1", "settings by name")])
def test_recipe_that_is_none_is_named(content, expected, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(content)
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*{expected}"):
        parse([f"--config={recipe}"])


def test_missing_recipe_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"--config nix\.yaml: no such file.*demo\.yaml"):
        parse(["--config", "nix.yaml"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--noise.strength", "abc"], "noise.strength must be a number, got abc"),
        (["--batch_size", "3.5"], "batch_size must be a whole number, got 3.5"),
        (["--noise.scaling", "cubic"], "noise.scaling must be one of sublinear, linear, uniform, isotropic, shuffled"),
        (["--lora.dora", "perhaps"], "lora.dora must be true or false, got perhaps"),
        (["--model.max_pixels", "many"], "model.max_pixels must be a whole number or null, got many"),
        (["--data.weights", "a"], "data.weights must be a list, [FIRST, ...], each a number or null, got a"),
        (["--monitors", "csv", "wnadb"], "each one of csv, tensorboard, wandb, got wnadb"),
        (["--batch_size"], "batch_size has no value; it must be a whole number"),
        (["--batch_size", "8", "9"], "batch_size has 2 values: 8 9; it must be a whole number"),
        (["--model.max_pixels", "-3"], "model.max_pixels must be >= 1, got -3"),
        (["--model.max_tokens", "0"], "model.max_tokens must be >= 1, got 0"),
        (["--optimizer.lr", "1e400"], "optimizer.lr must be a number > 0, got inf"),
        (["--temperature", ".nan"], "temperature must be > 0, got nan"),
        (["--batch_size", "8"], "chunk_size (32) must not be larger than batch_size (8); take --chunk_size 8 or less"),
    ],
)
def test_wrong_value_names_setting_value_and_rule(arguments, expected):
    message = refusal(*arguments)
    assert expected in message
    assert "class" not in message and "Parser" not in message


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"model\.base, output_dir must be given"):
        parse(["--data.pairs", "a.csv"])


def test_recipe_without_its_option_is_told_where_it_goes():
    with pytest.raises(ConfigError, match=r"write --config trainer/recipes/demo\.yaml"):
        parse(["trainer/recipes/demo.yaml"])


def test_a_switch_needs_no_value_and_a_list_no_brackets():
    config = parse(
        [*NEEDED, "--dry_run", "--lora.dora", "--data.pairs", "a, b.csv", "c.csv", "--data.weights", "1", "2"]
    )
    assert config.dry_run and config.lora.dora
    assert config.data.pairs == ["a, b.csv", "c.csv"] and config.data.weights == [1, 2]
    assert parse([*NEEDED, "--data.pairs=a.csv", "--dry_run=false"]).data.pairs == ["a.csv"]
    assert parse([*NEEDED, "--data.pairs", "[a.csv,", "b.csv]"]).data.pairs == ["a.csv", "b.csv"]
    assert parse([*NEEDED, "--data.pairs+", "b.csv"]).data.pairs == ["a.csv", "b.csv"]
    assert parse([*NEEDED, "--data.weights", "null"]).data.weights is None


def test_empty_and_negative_values_are_values():
    assert parse([*NEEDED, "--model.query_prompt", ""]).model.query_prompt == ""
    assert "noise.strength must be a number >= 0, got -1" in refusal("--noise.strength", "-1")


def test_options_override_the_recipe_wherever_they_stand(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {base: demo/checkpoint}\ndata: {pairs: [a.csv]}\noutput_dir: runs/x\nseed: 3\n")
    config = parse(["--config", str(recipe), "--seed", "4", "--local_rank=1"])
    assert config.seed == 4 and config.data.pairs == ["a.csv"]


def test_reading_the_options_needs_no_model_library():
    script = "import sys, trainer.command_line; sys.exit('transformers' in sys.modules or 'deepspeed' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
