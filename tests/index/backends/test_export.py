import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fanoise.errors import InputError
from index.backends.export import batches

ROOT = Path(__file__).parents[3]


def make_row(i: int, size: int = 0, other: dict | None = None) -> dict:
    return {"id": f"i{i}", "row": i, "vector": np.zeros(4, np.float32), "other": other or {}, "f_text": "x" * size}


def test_batches_keep_the_order_and_their_limits():
    rows = [make_row(i, size=100 * (i % 7)) for i in range(50)]
    found = list(batches(iter(rows), most_bytes=2000, most_rows=6))
    assert [row["row"] for batch in found for row in batch] == list(range(50))
    assert max(map(len, found)) <= 6
    assert all(sum(len(row["f_text"]) + 16 for row in batch) <= 2000 for batch in found)
    assert len(found) < 20


def test_a_row_larger_than_a_batch_goes_alone():
    found = list(batches(iter([make_row(0), make_row(1, size=9000), make_row(2)]), most_bytes=1000, most_rows=9))
    assert [[row["row"] for row in batch] for batch in found] == [[0], [1], [2]]
    assert list(batches(iter([]), most_bytes=1, most_rows=1)) == []


def test_too_much_json_names_the_item():
    row = make_row(3, other={"v1": "ü" * 33_000})
    with pytest.raises(InputError, match=r"item 'i3': its fields beyond the typed columns take 66,0\d\d bytes"):
        list(batches(iter([row]), most_bytes=10**6, most_rows=9))


def test_without_pymilvus_the_command_says_what_to_install(varied, monkeypatch, capsys):
    from index.__main__ import main

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        main(["export-milvus", "--index", str(varied), "--uri", "shop.db", "--collection", "goods"])
    assert error.value.code == 2
    assert "pip install -r requirements-milvus.txt" in capsys.readouterr().err


class TestMilvusLite:
    """With Milvus Lite, in a file."""

    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch):
        pytest.importorskip("pymilvus")
        pytest.importorskip("milvus_lite")
        monkeypatch.setattr("index.backends.export._NOTE_EVERY_S", 0)
        monkeypatch.setattr("index.backends.export._BATCH_ROWS", 10)

    @pytest.fixture
    def address(self, tmp_path):
        from index.backends.address import parse_address

        return parse_address(str(tmp_path / "shop.db"), collection="goods")

    def export(self, index, address, **options):
        from index.backends.export import export_milvus

        return export_milvus(index, address, progress=False, **options)

    def test_what_was_broken_off_goes_on_and_is_not_searched(self, varied, address, monkeypatch):
        from pymilvus import MilvusClient

        from fanoise.errors import ArtifactError
        from index.backends import open_backend

        sent: list[list[int]] = []
        upsert = MilvusClient.upsert

        def break_off(self, collection, rows, **options):
            if len(sent) == 3:
                raise KeyboardInterrupt
            sent.append([row["row"] for row in rows])
            return upsert(self, collection, rows, **options)

        monkeypatch.setattr(MilvusClient, "upsert", break_off)
        with pytest.raises(KeyboardInterrupt):
            self.export(varied, address)
        with pytest.raises(ArtifactError, match="not completely filled; repeat the export, which goes on"):
            open_backend(str(address))
        monkeypatch.setattr(MilvusClient, "upsert", upsert)
        exported = self.export(varied, address)
        assert (exported.count, exported.sent) == (91, 61)
        assert len(open_backend(str(address)).live_ids) == 91
        assert self.export(varied, address).sent == 0

    def test_only_living_rows_are_exported(self, varied, address, tmp_path):
        import shutil

        from index.backends import open_backend
        from index.update import delete_items

        shutil.copytree(varied, tmp_path / "index")
        delete_items(tmp_path / "index", ids=["g1", "g50", "g90"])
        assert self.export(tmp_path / "index", address).count == 88
        ids = open_backend(str(address)).live_ids
        assert len(ids) == 88 and not {"g1", "g50", "g90"} & set(ids)

    def test_a_collection_of_something_else_is_kept_unless_replaced(self, varied, address, tmp_path):
        import shutil

        from pymilvus import MilvusClient

        from fanoise.errors import ArtifactError
        from index.backends import open_backend
        from index.update import delete_items

        client = MilvusClient(address.server)
        client.create_collection("goods", dimension=4)
        with pytest.raises(ArtifactError, match=r"was not made by .*; choose another --collection, or drop this one"):
            self.export(varied, address)
        assert self.export(varied, address, replace_other=True).sent == 91
        shutil.copytree(varied, tmp_path / "index")
        delete_items(tmp_path / "index", ids=["g1"])
        with pytest.raises(ArtifactError, match="holds 91 items of another index or generation"):
            self.export(tmp_path / "index", address)
        with pytest.raises(ArtifactError, match="the same items in another form"):
            self.export(varied, address, index_type="IVF_FLAT", index_params={"nlist": 4})
        assert self.export(tmp_path / "index", address, replace_other=True).count == 90

        client.delete("goods", ids=["g2"])
        with pytest.raises(ArtifactError, match="has 89 items instead of the 90 that were exported"):
            open_backend(str(address))
        assert self.export(tmp_path / "index", address, replace_other=True).sent == 90
        assert len(open_backend(str(address))) == 90

    def test_rows_that_get_lost_are_missed(self, varied, address, monkeypatch):
        from pymilvus import MilvusClient

        from fanoise.errors import ArtifactError

        upsert = MilvusClient.upsert
        monkeypatch.setattr(MilvusClient, "upsert", lambda self, name, rows, **o: upsert(self, name, rows[1:], **o))
        with pytest.raises(ArtifactError, match="has 81 rows after 91 were sent; repeat the export, which sends all"):
            self.export(varied, address)
        monkeypatch.setattr(MilvusClient, "upsert", upsert)
        assert self.export(varied, address).sent == 91

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"precision": "fp16"}, "precision must be fp32 in Milvus Lite"),
            ({"precision": "int8"}, "precision must be one of fp32, fp16"),
            ({"shards": 0}, "shards must be from 1 to 16"),
            ({"replicas": 0}, "replicas must be at least 1"),
        ],
    )
    def test_bad_options_are_refused(self, varied, address, options, message):
        with pytest.raises(InputError, match=message):
            self.export(varied, address, **options)

    def test_a_bad_index_type_is_refused_before_any_row_is_sent(self, varied, address, monkeypatch):
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        from fanoise.errors import ArtifactError

        with pytest.raises(InputError, match=r"index type must be one of AUTOINDEX, FLAT, .* got 'GPU_CAGRA'"):
            self.export(varied, address, index_type="GPU_CAGRA")

        def refuse(*arguments, **options):
            raise MilvusException(message="invalid index type: NO_SUCH")

        monkeypatch.setattr(MilvusClient, "create_index", refuse)
        with pytest.raises(ArtifactError, match="invalid index type: NO_SUCH"):
            self.export(varied, address)
        assert MilvusClient(address.server).list_collections() == []

    def test_vectors_and_fields_of_a_server_are_declared(self, varied):
        from pymilvus import DataType

        from index.backends.export import collection_schema
        from index.backends.layout import Layout
        from index.opened import Index
        from index.parquet import read_parquet

        table = read_parquet(Index.open(varied).generation_folder / "items.parquet")
        schema = collection_schema(Layout.of([table], is_half=True), 24)
        kinds = {field.name: field.dtype for field in schema.fields}
        assert kinds["vector"] == DataType.FLOAT16_VECTOR
        assert kinds["f_price"] == DataType.INT64 and kinds["f_weight"] == DataType.DOUBLE
        assert kinds["f_sale"] == DataType.BOOL and kinds["n_size"] == DataType.DOUBLE
        assert len(kinds) == len(schema.fields) <= 64

    def test_killed_twice_it_is_complete_at_last(self, varied, address, tmp_path):
        """SIGKILL between two batches, and when all that is missing is the mark; the child says when it is there."""
        from index.backends import open_backend
        from index.opened import Index

        script = tmp_path / "export.py"
        script.write_text(
            "import sys, time, index.backends.export as export\n"
            "from index.backends.address import parse_address\n"
            "from pymilvus import MilvusClient\n"
            "export._NOTE_EVERY_S, export._BATCH_ROWS = 0, 10\n"
            "name = sys.argv[3]\n"
            "call, left = getattr(MilvusClient, name), int(sys.argv[4])\n"
            "def stop(*arguments, **options):\n"
            "    global left\n"
            "    left -= 1\n"
            "    if left < 0:\n"
            "        print('there', flush=True)\n"
            "        time.sleep(60)\n"
            "    return call(*arguments, **options)\n"
            "setattr(MilvusClient, name, stop)\n"
            "export.export_milvus(sys.argv[1], parse_address(sys.argv[2]), progress=False)\n"
        )
        for name, calls in (("upsert", 4), ("load_collection", 0)):
            with subprocess.Popen(
                [sys.executable, script, varied, str(address), name, str(calls)],
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            ) as process:
                assert process.stdout is not None and process.stdout.readline() == b"there\n"
                process.kill()
        assert self.export(varied, address).sent == 0
        found, folder = open_backend(str(address)), Index.open(varied)
        assert found.live_ids == folder.live_ids
        vectors = folder.vectors.rows(slice(None))
        assert [hits[0].id for hits in found.find(vectors, 1)] == folder.live_ids

    def test_the_command_prints_where_it_is(self, varied, tmp_path, capsys):
        from index.__main__ import main

        command = ["export-milvus", "--index", str(varied), "--uri", f"{tmp_path}/shop.db", "--collection", "goods"]
        assert main([*command, "--no-progress", "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert (content["items"], content["sent"], content["shortened"]) == (91, 91, 0)
        assert content["index"] == f"milvus+file:{tmp_path}/shop.db/goods"
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert "Exported 0 items" in out and "(91 were there)" in out
        assert f"--index {content['index']}" in out
        assert "Exporting" not in err
