import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fanoise.embedder
from index.__main__ import main
from index.generations import writing
from tests.index.conftest import draw


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
    assert "  1 × file not found, bad·[2J (img/none.png)" in summary

    assert main(["search", "--index", out, "--text", "thing number 12", "--k", "3"]) == 0
    header, first, *rest = capsys.readouterr().out.splitlines()
    assert header.split() == ["#", "score", "id", "text", "colour", "price"]
    assert first.split() == ["1", "1.0000", "g12", "thing", "number", "12", "red", "2"]
    assert first.index("g12") == header.index("id")
    assert len(rest) == 4
    assert rest[-1].startswith("encode ") and rest[-1].endswith(" ms on CPU")

    assert main(["info", "--index", out]) == 0
    info = capsys.readouterr().out
    for part in (
        "items        40",
        "dim 16, fp32",
        "../run",
        "strength 0.1",
        "Flat (auto: exact",
        "searched by  CPU",
        "rejects.jsonl",
        "ab12cd34ef56",
    ):
        assert part in info

    assert main(["verify", "--index", out]) == 0
    assert capsys.readouterr().out == f"{out} is sound: 40 items, generation 1\n"
    assert main(["verify", "--index", out, "--reencode", "100", "--no-progress"]) == 0
    assert "is sound: 40 items, generation 1; 40 items encoded again agreed" in capsys.readouterr().out


def test_search_as_json_with_filters(built, capsys):
    assert (
        main(["search", "--index", str(built), "--text", "x", "--json", "--where", "colour=red", "--where", "price=2"])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"hits", "latency_ms", "device"} and answer["device"] == "CPU"
    assert {(hit["colour"], hit["price"]) for hit in answer["hits"]} == {("red", "2")}
    assert sorted(hit["id"] for hit in answer["hits"]) == ["g12", "g32"]


def test_search_with_an_image_of_the_catalogue_finds_it(built, tmp_path, capsys):
    image = tmp_path / "goods" / "img" / "2.png"
    argv = ["search", "--index", str(built), "--image", str(image), "--text", "thing number 2", "--json"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["id"] == "g2"


def test_a_search_without_matches_is_done_and_says_so(built, capsys):
    assert main(["search", "--index", str(built), "--text", "x", "--where", "colour=puce"]) == 0
    note = "no item has colour 'puce'; there are: 'blue', 'green', 'red', 'white'"
    assert capsys.readouterr().out == f"No hits.\nnote: {note}\n"
    assert main(["search", "--index", str(built), "--text", "x", "--where", "colour=puce", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [note]


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
    assert len(capsys.readouterr().out.splitlines()) == 3  # two faults, and what to do
    assert main(["verify", "--index", str(built), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] is False
    assert "vectors.npy" in report["faults"][0]


def test_bad_input_exits_2_in_one_line(built, new_catalog, tmp_path, capsys):
    index = ("--index", built)
    assert "neither" in fails(capsys, "search", *index)
    assert "colour" in fails(capsys, "search", *index, "--text", "x", "--where", "color=red")
    assert "must be FIELD=VALUE" in fails(capsys, "search", *index, "--text", "x", "--where", "colour")
    assert "twice" in fails(capsys, "search", *index, "--text", "x", "--where", "a>=1", "--where", "a>=2")
    assert "holds numbers" in fails(capsys, "search", *index, "--text", "x", "--where", "price>=cheap")
    assert "from -1 to 1" in fails(capsys, "search", *index, "--text", "x", "--min-score", "1.5")
    assert "unknown field 'maker'" in fails(capsys, "search", *index, "--text", "x", "--group-by", "maker")
    assert "not allowed with" in fails(capsys, "search", *index, "--text", "x", "--group-by", "colour", "--no-group")
    assert "needs --text" in fails(capsys, "search", *index, "--image", "a.png", "--hybrid")
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
    first, encoded, *_, second, third = capsys.readouterr().out.splitlines()
    assert encoded == "Encoded 1"
    assert first.startswith("Added 1 item in ") and first.endswith(f"{built} holds 41 items, generation 2")
    assert second.startswith("Rejected 1 row, listed at the end of ") and second.endswith("rejects.jsonl:")
    assert third == "  1 × file not found, n2 (img/no.png)"

    update = ["update", *index, "--catalog", str(folder / "changed.csv"), "--no-progress", "--json", "--drop-columns"]
    assert main(update) == 0
    done = {"added": 2, "deleted": 2, "rejected": 0, "notes": [], "generation": 3, "live": 41}
    done |= {"encoded": 2, "reused": 0, "duplicates": 0, "passed_over": {}}
    assert json.loads(capsys.readouterr().out) == done
    assert main(["add", *index, "--catalog", str(folder / "changed.csv"), "--replace", "--no-progress"]) == 0
    assert "Added 2 items, replacing 2 rows in " in capsys.readouterr().out

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
    assert "Removed 16 deleted rows from the files and made FAISS HNSW8 in " in capsys.readouterr().out
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


def test_add_with_the_options_of_a_catalogue(built, tmp_path, capsys):
    draw(tmp_path / "shelf" / "a.png", 1)
    draw(tmp_path / "b.png", 2)
    (tmp_path / "new.csv").write_text("id,text,front,back\nn1,one,shelf/a.png,\nn2,two,../b.png,shelf/a.png\n")
    (tmp_path / "deep").mkdir()
    add = ["add", "--index", str(built), "--no-progress", "--image", "front"]
    here = ["--catalog", str(tmp_path / "new.csv"), "--images", str(tmp_path / "shelf" / "..")]
    assert main([*add, *here, "--image", "back"]) == 0
    assert "Added 2 items" in (summary := capsys.readouterr().out)
    assert "Rejected 1 row, listed at the end of" in summary
    (tmp_path / "more.csv").write_text("id,text,front\nn4,four,../b.png\n")
    there = ["--catalog", str(tmp_path / "more.csv"), "--images", str(tmp_path / "deep"), "--allow-outside"]
    assert main([*add, *there]) == 0
    assert "Added 1 item" in capsys.readouterr().out
    verify = ["verify", "--index", str(built), "--reencode", "100", "--no-progress"]
    assert "--allow-outside" in fails(capsys, *verify)
    assert main([*verify, "--allow-outside"]) == 0


def test_where_images_are_looked_for_is_said_if_most_are_not_there(built, new_catalog, tmp_path, capsys):
    hint = "relative image paths start in the catalogue's folder, or where --images FOLDER says"
    missing = [{"id": f"m{i}", "text": "a", "image": f"{i}.png", "colour": "red", "price": "1"} for i in range(3)]
    for texts, is_said in ((2, True), (3, False)):
        catalog = new_catalog(texts, images=0, name=f"few-{texts}", extra=missing)
        build = ["build", "--embedder", "run", "--catalog", str(catalog), "--out", str(tmp_path / f"index-{texts}")]
        for command in (build, ["add", "--index", str(built), "--catalog", str(catalog), "--replace"]):
            assert main([*command, "--no-progress"]) == 0
            lines = capsys.readouterr().out.splitlines()
            assert lines.count(f"  {hint}") == is_said
            assert any("3 × file not found, such as m0" in line for line in lines)


def test_a_template_of_the_build_is_named_where_a_column_is_missing(new_catalog, tmp_path, capsys):
    out = str(tmp_path / "index")
    build = ["build", "--embedder", "run", "--catalog", str(new_catalog()), "--out", out, "--text", "{text}, {colour}"]
    assert main([*build, "--no-progress"]) == 0
    capsys.readouterr()
    (tmp_path / "new.csv").write_text("id,text\nn1,one\n")
    line = fails(capsys, "add", "--index", out, "--catalog", tmp_path / "new.csv", "--no-progress")
    assert "unknown column 'colour'" in line and "(read as the index was built, with --text '{text}, {colour}')" in line


def test_a_build_that_was_broken_off_is_told_from_no_index(tmp_path, capsys):
    (tmp_path / "index" / "encoding" / "plan").mkdir(parents=True)
    line = fails(capsys, "info", "--index", tmp_path / "index")
    assert "is not finished: run the same `index build` again" in line


@pytest.mark.parametrize("name", ["vectors.npy", "items.parquet", "index.faiss", "rejects.jsonl", "deleted.npy"])
def test_a_file_that_is_gone_is_named_by_every_command(built, tmp_path, capsys, name):
    gone = built / "generation-000001" / name
    gone.unlink()
    assert main(["verify", "--index", str(built)]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"{gone} is missing"
    assert last.startswith("1 fault; restore what is damaged from a copy, or make it anew with")
    for command in (
        ["search", "--text", "x"],
        ["delete", "--id", "g1"],
        ["compact"],
        ["export", "--out", tmp_path / "e"],
    ):
        line = fails(capsys, command[0], "--index", built, *command[1:])
        assert f"{gone} is missing; restore it or rebuild the index" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(built, capsys, monkeypatch):
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: write(Path("/dev/full"), data))
    line = fails(capsys, "delete", "--index", built, "--id", "g1")
    assert (
        line
        == f"error: {built}: No space left on device; nothing was changed; make room and run the same command again\n"
    )


def test_commands_on_folders_refuse_a_collection_and_a_file(tmp_path, capsys):
    (tmp_path / "shop.db").write_bytes(b"")
    assert "it is a file; build one" in fails(capsys, "search", "--index", tmp_path / "shop.db", "--text", "x")
    for command in (["info"], ["verify"], ["delete", "--id", "g1"]):
        line = fails(capsys, *command, "--index", "milvus+file:shop.db/goods")
        assert "'milvus+file:shop.db/goods' is a Milvus collection, which only `search` reads; name the index" in line


def test_a_closed_stdin_names_no_ids(built, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit) as ended:
        main(["delete", "--index", str(built), "--ids-file", "-"])
    assert ended.value.code == 2
    assert "nothing says which items to delete" in capsys.readouterr().err


def test_add_and_update_know_the_options_of_build_about_encoding(built, tmp_path, capsys, monkeypatch):
    bad = tmp_path / "goods" / "bad.csv"
    bad.write_text("id,text,image\ng1,again,\ng2,,img/none.png\n")
    update = ["update", "--index", str(built), "--catalog", str(bad), "--no-progress", "--workers", "0"]
    assert "would lose: colour (2 rows), price (2 rows); give" in fails(capsys, *update)
    update.append("--drop-columns")
    assert "more than the share of 0.4" in fails(capsys, *update, "--max-rejects", "0.4")
    assert main([*update, "--max-rejects", "0.5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["added"], printed["encoded"], printed["reused"], printed["rejected"]) == (1, 0, 1, 1)
    photos = tmp_path / "photos"
    for i in range(3):
        draw(photos / f"{i}.png", i % 2)
    (photos / "notes.txt").touch()
    add = ["add", "--index", str(built), "--catalog", str(photos), "--no-progress"]
    assert main([*add, "--near-duplicates", "skip", "--shard-rows", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Near-duplicates of images: 2 rejected" in lines
    assert "Passed over 1 file of no kind that is read: 1 × .txt" in lines
