"""The page as browsers and programs meet it: launched on a free port, asked over HTTP."""

import asyncio
import base64
import io
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
import pytest
from PIL import Image

from app.examples import Example
from app.service import ARMS, Pair, Service
from app.ui.page import build_page, launch_options
from app.ui.search import run_query


def inside_a_loop(make: Callable[[], Any]) -> Any:
    """Call `make` under a running event loop: without one, gradio opens several and never closes them."""

    async def run() -> Any:
        return make()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def address(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    photo = tmp_path_factory.mktemp("examples") / "blue.png"
    Image.new("RGB", (20, 20), "blue").save(photo)
    examples = {"products": [Example(text="a red <mug>"), Example(image=photo)]}
    assert (
        anyio.open_file is not None
    )  # imported late, under the server's deep stack, pytest's rewriting of it overflows
    page = inside_a_loop(lambda: build_page(service, examples=examples))
    options = launch_options(service, examples=examples)
    inside_a_loop(lambda: page.launch(**options, prevent_thread_lock=True))
    yield str(page.local_url).rstrip("/")
    page.close()


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def call(address: str, name: str, *values: Any) -> tuple[str, Any]:
    """The named endpoint's event ("complete" or "error") and its data."""
    body = json.dumps({"data": values}).encode()
    request = urllib.request.Request(
        f"{address}/gradio_api/call/{name}", body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        event_id = json.load(response)["event_id"]
    _, stream = get(f"{address}/gradio_api/call/{name}/{event_id}")
    event, data = stream.decode().strip().split("\n")[-2:]
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_the_page_is_a_blocks_with_two_named_endpoints(service: Service, address: str) -> None:
    assert isinstance(inside_a_loop(lambda: build_page(service)), gr.Blocks)
    _, info = get(f"{address}/gradio_api/info")
    named = json.loads(info)["named_endpoints"]
    assert sorted(named) == ["/compare", "/search"]
    assert named["/search"]["parameters"][0]["parameter_name"] == "text"


def test_search_answers_programs_in_json(service: Service, address: str) -> None:
    event, (answer,) = call(address, "search", "red", "", "products", "baseline", 3, "")
    assert event == "complete"
    expected = service.search("products", "baseline", "red", k=3)
    assert answer["hits"] == [hit.to_json() for hit in expected.hits]
    assert answer["hits"][0]["id"] == "red-0" and answer["hits"][0]["price"] == "5"
    assert set(answer["latency_ms"]) == {"encode", "search"}


def test_compare_answers_with_both_sides_and_the_moves(service: Service, address: str) -> None:
    event, (answer,) = call(address, "compare", "orange", "", "products", 6, "lamp")
    assert event == "complete"
    found = service.compare("products", "orange", k=6, where={"category": "lamp"})
    answers = {"baseline": found.baseline, "fanoise": found.fanoise}
    for arm in ARMS:
        assert answer[arm]["hits"] == [hit.to_json() for hit in answers[arm].hits]
        assert answer["moves"][arm] == [{"kind": move.kind, "by": move.by} for move in found.moves[arm]]
    assert "<" not in json.dumps(answer)


def test_a_photo_is_sent_as_base64_or_data_url(address: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (50, 90, 190)).save(buffer, format="PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    for image in (encoded, f"data:image/png;base64,{encoded}"):
        event, (answer,) = call(address, "search", "", image, "products", "baseline", 1, "")
        assert (event, answer["hits"][0]["id"]) == ("complete", "blue-0")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["", "", "products", "baseline", 3, ""], "Type something or drop a photo."),
        (["red", "", "shoes", "baseline", 3, ""], "no catalogue called 'shoes'; there are: products"),
        (["red", "", "products", "baseline", 51, ""], "k is 51; it must be a whole number from 1 to 50"),
        (["", "/etc/passwd", "products", "baseline", 3, ""], "image must be base64 or a data: URL"),
        (["", "aGVsbG8=", "products", "baseline", 3, ""], "not an image of a known format"),
    ],
)
def test_the_endpoints_say_what_is_wrong(address: str, values: list[Any], message: str) -> None:
    event, error = call(address, "search", *values)
    assert event == "error"
    assert message in json.dumps(error)


def test_thumbnails_are_served_and_nothing_else_of_the_index(address: str, pair: Pair) -> None:
    folder, thumbnail = pair.baseline.index.folder, pair.baseline.index.thumbnail(0)
    status, picture = get(f"{address}/gradio_api/file={urllib.parse.quote(str(thumbnail))}")
    assert status == 200 and Image.open(io.BytesIO(picture)).size == (48, 32)
    items = "generation-000001/items.parquet"
    for hidden in ("manifest.json", items, f"thumbnails/../{items}", "thumbnails/%2e%2e/manifest.json"):
        assert (folder / hidden.replace("%2e", ".")).is_file()
        assert get(f"{address}/gradio_api/file={folder}/{hidden}")[0] == 403
    assert get(f"{address}/gradio_api/file={Path(__file__).parents[2]}/app/service.py")[0] == 403


def test_the_page_asks_for_nothing_outside(address: str) -> None:
    _, html = get(address)
    assert b"fonts.googleapis" not in html and b"fonts.gstatic" not in html


def test_examples_and_the_promise_are_on_the_page(address: str) -> None:
    _, config = get(f"{address}/config")
    values = [str(component["props"].get("value", "")) for component in json.loads(config)["components"]]
    everything = "\n".join(values)
    assert "Noise-free search" in everything
    assert "a red &lt;mug&gt;" in everything and "<mug>" not in everything
    assert "Type something or drop a photo" in everything


def text_of(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", unescape(html))


def test_an_empty_query_is_asked_for_only_when_search_was_pressed(service: Service) -> None:
    quiet, *columns = run_query(service, "products", "  ", None, "", 5, insist=False)
    assert "Both models search the same catalogue" in quiet and 'role="alert"' not in quiet
    asked, *_ = run_query(service, "products", "", None, "", 5, insist=True)
    assert 'role="alert"' in asked and "Type something or drop a photo." in asked
    assert all("24 items" in column and "<li" not in column for column in columns)


def test_a_query_fills_both_columns(service: Service) -> None:
    status, *columns = run_query(service, "products", "orange", None, "mug", 5, insist=True)
    assert "found" in text_of(status)
    assert [column.count("<li") for column in columns] == [5, 5]
    assert [column.count("<img") for column in columns] == [5, 5]
    assert "trained without noise" in columns[0] and "trained with noise 0.1, sublinear" in columns[1]


def test_a_bad_photo_is_a_friendly_sentence_without_paths(service: Service, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("no image")
    status, *columns = run_query(service, "products", "", {"path": str(tmp_path / "photo.png")}, "", 5, insist=True)
    assert text_of(status).strip() == "This photo cannot be used: not an image of a known format."
    assert str(tmp_path) not in status and not any("<li" in column for column in columns)


def test_a_failure_of_ours_is_logged_and_not_shown(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service, "compare", fail)
    status, *_ = run_query(service, "products", "red", None, "", 5, insist=True)
    assert "The search failed" in status and "secret" not in status
    assert "secret detail" in caplog.text


def search_with_photo(address: str, path: str) -> dict[str, Any]:
    """What the Search button sends, with a photo of our choice; Gradio's last message about it."""
    _, config = get(f"{address}/config")
    search = next(entry for entry in json.loads(config)["dependencies"] if len(entry["outputs"]) == 3)
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": ["products", "", photo, "", 5], "fn_index": search["id"], "session_hash": "test"}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=20).close()
    _, stream = get(f"{address}/gradio_api/queue/data?session_hash=test")
    (done,) = [line for line in stream.decode().splitlines() if "process_completed" in line]
    return dict(json.loads(done.removeprefix("data: ")))


def test_only_an_uploaded_photo_is_searched_with(address: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (50, 90, 190)).save(buffer, format="PNG")
    (tmp_path / "private.png").write_bytes(buffer.getvalue())
    assert search_with_photo(address, str(tmp_path / "private.png"))["success"] is False

    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%b\r\n--x--\r\n'
    request = urllib.request.Request(
        f"{address}/gradio_api/upload",
        form % buffer.getvalue(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        (uploaded,) = json.load(response)
    done = search_with_photo(address, uploaded)
    assert done["success"] is True
    assert 'data-item="blue-0"' in done["output"]["data"][1]
