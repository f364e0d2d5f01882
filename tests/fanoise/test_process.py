import os
import warnings

from fanoise.process import prepare_process


def test_defaults_are_set_and_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", {"TRANSFORMERS_VERBOSITY": "info"})
    with warnings.catch_warnings():
        prepare_process()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


def test_warnings_of_libraries_are_hidden_and_our_own_are_not(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        prepare_process()
        warnings.warn_explicit("noise of a library", UserWarning, "x.py", 1, module="torch.nn.modules")
        warnings.warn_explicit("worth reading", UserWarning, "x.py", 1, module="trainer.train")
    assert [str(warning.message) for warning in seen] == ["worth reading"]
