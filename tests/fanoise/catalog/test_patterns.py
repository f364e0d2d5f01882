from pathlib import Path

import pytest

from fanoise.catalog.patterns import is_pattern, pattern_files, pattern_root
from fanoise.errors import CatalogError
from tests.fanoise.catalog.files import raw


@pytest.fixture
def shards(tmp_path):
    for name in (
        "a-000.tar",
        "a-001.tar",
        "a-010.tar",
        "b-000.tar",
        "sub/a-000.tar",
        "a-000.txt",
        "[x].tar",
        ".sub/a-000.tar",
    ):
        raw(tmp_path / name, "")
    (tmp_path / "a-folder.tar").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{000..001}.tar", ["a-000.tar", "a-001.tar"]),
        ("{b,a}-000.tar", ["b-000.tar", "a-000.tar"]),
        ("{a,b}-{000..000}.tar", ["a-000.tar", "b-000.tar"]),
        ("a-*.tar", ["a-000.tar", "a-001.tar", "a-010.tar"]),
        ("a-0?0.tar", ["a-000.tar", "a-010.tar"]),
        ("a-[0]01.tar", ["a-001.tar"]),
        ("{b,a}-*.tar", ["b-000.tar", "a-000.tar", "a-001.tar", "a-010.tar"]),
        ("**/a-000.tar", ["a-000.tar", "sub/a-000.tar"]),
        ("{s,}ub/a-000.tar", None),
        ("a-{000..002}.tar", None),
        ("c-*.tar", None),
        ("[x].{tar}", ["[x].tar"]),
    ],
)
def test_a_pattern_names_files_as_in_a_shell(shards, monkeypatch, pattern, names):
    monkeypatch.chdir(shards)
    for root in (shards, Path()):
        if names is None:
            with pytest.raises(CatalogError, match="no such file"):
                pattern_files(root / pattern)
        else:
            assert pattern_files(root / pattern) == [root / name for name in names]


def test_what_is_there_is_no_pattern(shards):
    assert not is_pattern(shards / "[x].tar")
    assert not is_pattern(shards / "none.tar")
    assert is_pattern(shards / "a-*.tar")
    assert is_pattern(shards / "a-{0..1}.tar")


@pytest.mark.parametrize(
    ("pattern", "root"), [("/d/s/a-*.tar", "/d/s"), ("/d/*/x/a.tar", "/d"), ("{a,b}.tar", "."), ("s/{a,b}/c.tar", "s")]
)
def test_the_root_is_the_folder_before_the_first_choice(pattern, root):
    assert pattern_root(Path(pattern)) == Path(root)


@pytest.mark.parametrize("braces", ["{5..3}", "{0..1000000}", "{0..99999999999999999}"])
def test_a_count_that_is_not_sensible_is_refused(tmp_path, braces):
    with pytest.raises(CatalogError, match="must count up, to fewer than"):
        pattern_files(tmp_path / f"a-{braces}.tar")
