import pytest

from fanoise.errors import InputError
from index.backends.address import is_milvus, parse_address


@pytest.mark.parametrize(
    ("text", "server", "database", "collection", "again"),
    [
        ("milvus://host/goods", "http://host:19530", "", "goods", "milvus://host:19530/goods"),
        ("milvus://host:1/db/goods", "http://host:1", "db", "goods", "milvus://host:1/db/goods"),
        ("milvus+https://host/goods", "https://host:443", "", "goods", "milvus+https://host:443/goods"),
        ("milvus://[::1]:5/goods", "http://[::1]:5", "", "goods", "milvus://[::1]:5/goods"),
        ("milvus+file:a/b.db/goods", "a/b.db", "", "goods", "milvus+file:a/b.db/goods"),
        ("milvus+file:///data/b.db/goods", "/data/b.db", "", "goods", "milvus+file:/data/b.db/goods"),
        ("milvus+file:my%20shop.db/goods", "my shop.db", "", "goods", "milvus+file:my%20shop.db/goods"),
    ],
)
def test_an_address_is_read_and_written(text, server, database, collection, again):
    address = parse_address(text)
    assert (address.server, address.database, address.collection) == (server, database, collection)
    assert str(address) == again
    assert parse_address(again) == address
    assert is_milvus(text)


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("http://host:19530", "milvus://host:19530/goods"),
        ("http://host:19530/db", "milvus://host:19530/db/goods"),
        ("https://host", "milvus+https://host:443/goods"),
        ("shop.db", "milvus+file:shop.db/goods"),
        ("100%.db", "milvus+file:100%25.db/goods"),
        ("/data/my shop.db", "milvus+file:/data/my%20shop.db/goods"),
        ("milvus://host/goods", "milvus://host:19530/goods"),
    ],
)
def test_a_server_or_a_file_with_a_collection_is_an_address(text, again):
    assert str(parse_address(text, collection="goods")) == again
    assert parse_address(again) == parse_address(text, collection="goods")


def test_thumbnails_are_named_after_the_question_mark():
    assert parse_address("milvus://host/goods?thumbnails=/srv/a b").thumbnails == "/srv/a b"
    assert parse_address("milvus+file:x.db/goods?thumbnails=pictures").thumbnails == "pictures"
    assert parse_address("milvus://host/goods").thumbnails is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("milvus://host", "names no collection"),
        ("milvus+file:shop.db", "names no collection"),
        ("milvus://host/a/b/c", "too many parts"),
        ("milvus+file:shop/goods", r"ends in \.db"),
        ("milvus:///goods", "names no host"),
        ("milvus://host:port/goods", "must be"),
        ("milvus+ftp://host/goods", "must be milvus://HOST"),
        ("milvus://host/9goods", "not begin with a digit"),
        ("milvus://host/go-ods", "letters, digits and _"),
        ("milvus://host/db-1/goods", "database 'db-1'"),
        ("milvus://host/goods?pictures=x", "unknown 'pictures'"),
    ],
)
def test_what_is_no_address_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_address(text)


def test_two_collections_are_refused():
    with pytest.raises(InputError, match="names the collection 'goods', but --collection 'bads'"):
        parse_address("milvus://host/goods", collection="bads")


@pytest.mark.parametrize(
    "text",
    [
        "milvus://root:secret@host/goods",
        "http://root:secret@host",
        "milvus+x://u:secret@h/c",
        "milvus://root:a/secret@host/goods",
        "milvus://root:a?secret@host/goods",
        "milvus://root:1?secret@host/goods",
    ],
)
def test_a_password_is_refused_and_not_repeated(text):
    with pytest.raises(InputError) as error:
        parse_address(text, collection="goods")
    assert "secret" not in str(error.value)


def test_folders_are_no_addresses(tmp_path):
    assert not is_milvus(tmp_path)
    assert not is_milvus("runs/milvus")
