import subprocess
import sys

import pytest

import fanoise
import fanoise.backbones


def test_exports_are_sorted():
    assert fanoise.__all__ == sorted(fanoise.__all__)
    assert fanoise.backbones.__all__ == sorted(fanoise.backbones.__all__)


@pytest.mark.parametrize("name", fanoise.__all__)
def test_every_export_can_be_imported(name):
    assert getattr(fanoise, name).__name__ == name
    assert getattr(fanoise, name).__module__.startswith("fanoise.")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        _ = fanoise.Embeder


@pytest.mark.parametrize(
    "statement", ["import fanoise", "from fanoise import FANoiseError, Item, read_catalog", "import fanoise.storage"]
)
def test_importing_what_needs_no_model_does_not_import_torch(statement):
    script = f"{statement}; import sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
