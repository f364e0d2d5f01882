import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from fanoise.catalog import read_catalog
from tests.fanoise.catalog.files import write


@pytest.mark.parametrize(
    "folders",
    [
        ("year=2024/month=01", "year=2025/month=12"),
        ("a=1", "a=x"),
        ("a=-1", "a=3000000000"),
        ("a=-2147483648", "a=2147483647"),
        ("a=+1", "a=2"),
        ("a= 1", "a=٣"),
        ("a=x%20y", "a=z%3D%2F"),
        ("a%20b=1", "a%20b=2"),
        ("a=1", "b=2", "."),
        ("a=__HIVE_DEFAULT_PARTITION__", "a=3"),
        ("a=b=c/plain",),
    ],
)
def test_the_names_of_folders_are_the_fields_that_pyarrow_makes_of_them(tmp_path, folders):
    for number, folder in enumerate(folders):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [f"r{number}"], "text": ["x"]}), tmp_path / folder / f"{number}.parquet")
    expected = {row.pop("id"): row for row in ds.dataset(tmp_path, partitioning="hive").to_table().to_pylist()}
    assert {item.id: item.fields for item in read_catalog(tmp_path)} == expected
    assert {item.id: item.fields for item in read_catalog(tmp_path / "**" / "*.parquet")} == expected


def test_a_column_of_the_file_goes_before_the_name_of_its_folder(tmp_path):
    for year in (2023, 2024):
        write(tmp_path / f"year={year}" / "a.parquet", [{"text": f"{year}", "year": "own"}])
    assert [item.fields["year"] for item in read_catalog(tmp_path)] == ["own", "own"]


def test_text_may_be_made_of_the_names_of_folders_and_a_file_alone_has_none(tmp_path):
    for year in ("2023", "2024"):
        write(tmp_path / f"year={year}" / "a.parquet", [{"text": "x"}])
    assert [item.text for item in read_catalog(tmp_path, text="{text} of {year}")] == ["x of 2023", "x of 2024"]
    [alone] = read_catalog(tmp_path / "year=2023" / "a.parquet")
    assert alone.fields == {"text": "x"}


def test_only_parquet_is_partitioned(tmp_path):
    write(tmp_path / "year=2023" / "a.jsonl", [{"text": "x"}])
    assert [item.fields for item in read_catalog(tmp_path / "*" / "a.jsonl")] == [{"text": "x"}]
