import json
import os
import subprocess
import sys

import pytest

import fanoise.embedder
from index.__main__ import main
from index.generations import writing


@pytest.fixture(autouse=True)
def fake_loading(monkeypatch, embedder):
    monkeypatch.setattr(fanoise.embedder.Embedder, "from_pretrained", lambda path, *, device=None: embedder)


def fails(capsys, *argv) -> str:
    """Runs a command that must end with status 2 and one line on stderr; returns the line."""
    with pytest.raises(SystemExit) as caught:
        main([str(part) for part in argv])
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err


def test_build_search_info_verify(new_catalog, tmp_path, capsys):
    out = str(tmp_path / "index")
    extra = [{"id": "bad\x1b[2J", "text": "a", "image": "img/none.png", "colour": "red", "price": "1"}]
    assert main(["build", "--embedder", "run", "--catalog", str(new_catalog(extra=extra)), "--out", out]) == 0
    summary = capsys.readouterr().out
    assert "Indexed 40 items" in summary
    assert "Rejected 1 row, listed in" in summary
    assert "bad·[2J (img/none.png): file not found" in summary

    assert main(["search", "--index", out, "--text", "thing number 12", "--k", "3"]) == 0
    header, first, *rest = capsys.readouterr().out.splitlines()
    assert header.split() == ["#", "score", "id", "text", "colour", "price"]
    assert first.split() == ["1", "1.0000", "g12", "thing", "number", "12", "red", "2"]
    assert first.index("g12") == header.index("id")
    assert len(rest) == 4

    assert main(["info", "--index", out]) == 0
    info = capsys.readouterr().out
    for part in (
        "items        40",
        "dim 16, fp32",
        "../run",
        "strength 0.1",
        "Flat (auto: exact",
        "rejects.jsonl",
        "ab12cd34ef56",
    ):
        assert part in info

    assert main(["verify", "--index", out]) == 0
    assert "is sound" in capsys.readouterr().out


def test_search_as_json_with_filters(built, capsys):
    assert (
        main(["search", "--index", str(built), "--text", "x", "--json", "--where", "colour=red", "--where", "price=2"])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"hits", "latency_ms"}
    assert {(hit["colour"], hit["price"]) for hit in answer["hits"]} == {("red", "2")}
    assert sorted(hit["id"] for hit in answer["hits"]) == ["g12", "g32"]


def test_search_with_an_image_of_the_catalogue_finds_it(built, tmp_path, capsys):
    image = tmp_path / "goods" / "img" / "2.png"
    argv = ["search", "--index", str(built), "--image", str(image), "--text", "thing number 2", "--json"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["id"] == "g2"


def test_a_search_without_matches_is_done_and_says_so(built, capsys):
    assert main(["search", "--index", str(built), "--text", "x", "--where", "colour=puce"]) == 0
    assert capsys.readouterr().out == "No hits.\n"


def test_info_and_build_as_json(built, new_catalog, tmp_path, capsys):
    assert main(["info", "--index", str(built), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["count"] == 40
    assert info["sizes"]["total"] == sum(size for name, size in info["sizes"].items() if name != "total")
    catalog = str(new_catalog(name="other"))
    argv = ["build", "--embedder", "r", "--catalog", catalog, "--out", str(tmp_path / "o"), "--no-progress", "--json"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["embedder"]["noise"] == {"strength": 0.1, "scaling": "sublinear"}


def test_verify_lists_every_fault_and_exits_1(built, capsys):
    (built / "generation-000001" / "vectors.npy").write_bytes(b"short")
    (built / "generation-000001" / "items.parquet").unlink()
    assert main(["verify", "--index", str(built)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["verify", "--index", str(built), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] is False
    assert "vectors.npy" in report["faults"][0]


def test_bad_input_exits_2_in_one_line(built, new_catalog, tmp_path, capsys):
    index = ("--index", built)
    assert "neither" in fails(capsys, "search", *index)
    assert "colour" in fails(capsys, "search", *index, "--text", "x", "--where", "color=red")
    assert "FIELD=VALUE" in fails(capsys, "search", *index, "--text", "x", "--where", "colour")
    assert "twice" in fails(capsys, "search", *index, "--text", "x", "--where", "a=1", "--where", "a=2")
    assert "k must be at least 1" in fails(capsys, "search", *index, "--text", "x", "--k", "0")
    assert "invalid int value" in fails(capsys, "search", *index, "--text", "x", "--k", "ten")
    assert "file not found" in fails(capsys, "search", *index, "--image", tmp_path / "none.jpg")
    assert "does not exist" in fails(capsys, "search", "--index", tmp_path / "none", "--text", "x")
    assert "does not exist" in fails(capsys, "verify", "--index", tmp_path / "none")
    assert "manifest.json" in fails(capsys, "info", "--index", tmp_path)
    assert "--index" in fails(capsys, "info")
    assert "no such file" in fails(capsys, "build", "--embedder", "r", "--catalog", "none.csv", "--out", tmp_path / "o")
    assert "not an index" in fails(
        capsys, "build", "--embedder", "r", "--catalog", new_catalog(name="other"), "--out", tmp_path
    )


def test_a_damaged_index_is_not_searched(built, capsys):
    file = built / "generation-000001" / "index.faiss"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "index.faiss is damaged" in fails(capsys, "search", "--index", built, "--text", "x")


def test_add_update_delete_compact_export(built, tmp_path, capsys):
    folder = tmp_path / "goods"
    (folder / "new.csv").write_text("id,text,image\nn1,one,\nn2,two,img/no.png\n")
    (folder / "changed.csv").write_text("id,text\ng1,first again\nn1,one again\n")
    index = ("--index", str(built))

    assert main(["add", *index, "--catalog", str(folder / "new.csv"), "--embedder", "run", "--no-progress"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Added 1 item in ") and first.endswith(f"{built} holds 41 items, generation 2")
    assert second.startswith("Rejected 1 row, listed at the end of ") and second.endswith("rejects.jsonl")

    assert main(["update", *index, "--catalog", str(folder / "changed.csv"), "--no-progress", "--json"]) == 0
    done = {"added": 2, "deleted": 2, "rejected": 0, "generation": 3, "live": 41}
    assert json.loads(capsys.readouterr().out) == done
    assert main(["add", *index, "--catalog", str(folder / "changed.csv"), "--replace", "--no-progress"]) == 0
    assert "Added 2 items, of which 2 replaced in " in capsys.readouterr().out

    (tmp_path / "ids.txt").write_text("\ufeffg2\r\n\ng3\n", encoding="utf-8")
    assert main(["delete", *index, "--id", "g4", "--ids-file", str(tmp_path / "ids.txt")]) == 0
    assert "Deleted 3 items in " in (out := capsys.readouterr().out) and f"{built} holds 38 items" in out
    assert main(["delete", *index, "--where", "colour=red", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] == 9
    assert main(["delete", *index, "--where", "colour=puce"]) == 0
    assert capsys.readouterr().out == f"No item matches; {built} is as it was.\n"

    assert main(["info", *index]) == 0
    info = capsys.readouterr().out
    for part in ("generation 6", "items        29\n", "deleted      16, still in the files", "added from   new.csv"):
        assert part in info
    assert main(["compact", *index, "--factory", "HNSW8"]) == 0
    assert "Removed 16 deleted rows from the files" in capsys.readouterr().out
    assert main(["verify", *index, "--embedder", "run", "--reencode", "100"]) == 0
    assert main(["verify", *index, "--reencode", "5"]) == 0
    capsys.readouterr()
    assert main(["export", *index, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"Exported 29 items: {tmp_path / 'out'}\n"
    assert main(["info", *index, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["live"], info["deleted"], info["factory"]) == (29, 0, "HNSW8")


def test_bad_changes_exit_2_in_one_line(built, tmp_path, capsys):
    index = ("--index", built)
    (tmp_path / "known.csv").write_text("id,text\ng1,x\n")
    (tmp_path / "new.csv").write_text("id,text\nn1,x\n")
    assert "'g1'); replace those rows" in fails(capsys, "add", *index, "--catalog", tmp_path / "known.csv")
    assert "add --replace" in fails(capsys, "update", *index, "--catalog", tmp_path / "new.csv")
    assert "no such file" in fails(capsys, "add", *index, "--catalog", tmp_path / "none.csv")
    assert "does not exist" in fails(capsys, "add", "--index", tmp_path / "none", "--catalog", tmp_path / "new.csv")
    assert "--missing-ok" in fails(capsys, "delete", *index, "--id", "none")
    assert "no such file" in fails(capsys, "delete", *index, "--ids-file", tmp_path / "none")
    assert "nothing says which" in fails(capsys, "delete", *index)
    assert "delete all 40 items" in fails(capsys, "delete", *index, *(f"--id=g{i}" for i in range(40)))
    assert "does not suit" in fails(capsys, "compact", *index, "--factory", "IVF64,Flat")
    assert "is not empty" in fails(capsys, "export", *index, "--out", tmp_path)
    assert "at least 0" in fails(capsys, "verify", *index, "--reencode", "-1")
    with writing(built, "compact", create=False):
        assert f"process {os.getpid()}" in fails(capsys, "delete", *index, "--id", "g1")


def test_build_at_another_precision_and_dim(new_catalog, tmp_path, capsys):
    argv = ["build", "--embedder", "r", "--catalog", str(new_catalog()), "--out", str(tmp_path / "o"), "--no-progress"]
    assert main([*argv, "--precision", "int8", "--dim", "8"]) == 0
    capsys.readouterr()
    assert main(["info", "--index", str(tmp_path / "o")]) == 0
    assert "vectors      dim 8, the first of the embedder's 16, int8" in capsys.readouterr().out
    assert "dim must be from 1 to 16" in fails(capsys, *argv, "--dim", "20")
    assert "invalid choice: 'fp8'" in fails(capsys, *argv, "--precision", "fp8")


@pytest.mark.parametrize(
    "command", ["build", "search", "info", "verify", "add", "update", "delete", "compact", "export"]
)
def test_help_of_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"python -m index {command} " in capsys.readouterr().out


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from index.__main__ import build_parser\n"
        "build_parser().format_help()\n"
        "print([m for m in ('torch', 'faiss', 'transformers', 'pyarrow', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
