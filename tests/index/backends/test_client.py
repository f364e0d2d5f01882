import logging

import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

import grpc
import pymilvus

from fanoise.errors import ArtifactError
from index.backends.address import parse_address
from index.backends.client import connect, milvus_errors

FILE, SERVER = parse_address("milvus+file:shop.db/goods"), parse_address("milvus://host/db/goods")


@pytest.fixture
def calls(monkeypatch) -> list:
    made: list = []
    monkeypatch.setattr(pymilvus, "MilvusClient", lambda server, **options: made.append((server, options)))
    return made


def test_the_token_comes_from_the_environment(calls, monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "root:secret")
    connect(SERVER)
    [(server, options)] = calls
    assert (server, options["token"], options["db_name"]) == ("http://host:19530", "root:secret", "db")


def test_milvus_lite_is_not_pinged_every_ten_seconds(calls):
    """It answers such pings by dropping the connection, with the request that is on it."""
    connect(FILE)
    connect(SERVER)
    (_, of_file), (_, of_server) = calls
    assert of_file["grpc_options"]["grpc.keepalive_time_ms"] > 300_000
    assert "grpc_options" not in of_server


def test_what_is_raised_is_not_logged_as_well(calls, caplog):
    connect(FILE)
    for name in ("pymilvus.client", "milvus_lite.server_manager"):
        logging.getLogger(name).error("Traceback …")
    assert not caplog.records


@pytest.mark.parametrize(
    ("address", "message", "remedy"),
    [
        (SERVER, "auth check failure", "set MILVUS_TOKEN=user:password in the environment"),
        (SERVER, "connection lost", "look whether Milvus runs at http://host:19530, or try again"),
        (FILE, "database is locked", "look whether another process has the file open"),
        (FILE, "[Errno 28] Error writing bytes", "make room and run the same command again"),
        (FILE, "no such thing", "try again"),
    ],
)
def test_failures_are_one_line_with_a_remedy_and_no_secret(monkeypatch, address, message, remedy):
    monkeypatch.setenv("MILVUS_TOKEN", "root:secret")
    with pytest.raises(ArtifactError) as error, milvus_errors(address):
        raise pymilvus.MilvusException(message=f"{message}\n for root:secret")
    assert str(error.value) == f"{address}: {message} for …; {remedy}"
    with pytest.raises(ArtifactError, match="try again"), milvus_errors(SERVER):
        raise grpc.RpcError("gone")
