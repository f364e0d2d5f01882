"""The page as browsers and programs meet it: launched on a free port, asked over HTTP."""

import asyncio
import base64
import io
import json
import re
import threading
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
from app.service import ARMS, MAX_IMAGE_PIXELS, MAX_K, MAX_TEXT_CHARACTERS, Pair, Service
from app.ui.api import MAX_IMAGE_BYTES
from app.ui.page import build_page, launch_options
from app.ui.search import Visit, answer, run_query
from tests.app.conftest import unused_port


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
    # a port of its own: gradio leaves a socket open for each that is taken
    inside_a_loop(lambda: page.launch(**options, server_port=unused_port(), prevent_thread_lock=True))
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
    for parameter in named["/search"]["parameters"]:
        assert f"`{parameter['parameter_name']}`:" in named["/search"]["description"]


def test_the_endpoints_are_documented(address: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    _, info = get(f"{address}/gradio_api/info")
    for name, endpoint in json.loads(info)["named_endpoints"].items():
        assert f"`{name}`" in page
        for parameter in endpoint["parameters"]:
            assert f"| `{parameter['parameter_name']}` |" in page
    limits = (
        f"{MAX_TEXT_CHARACTERS:,} characters",
        f"{MAX_IMAGE_BYTES >> 20} MB",
        f"{MAX_IMAGE_PIXELS // 10**6} megapixels",
    )
    for limit in (*limits, f"1 to {MAX_K}"):
        assert limit in page


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
        (["red", "", "products", "baseline", "5", ""], "k is '5'; it must be a whole number from 1 to 50"),
        ([5, "", "products", "baseline", 3, ""], "text is 5; it must be a string"),
        ([["red"], "", "products", "baseline", 3, ""], "text is ['red']; it must be a string"),
        (["red", "", "products", "baseline", 3, ["mug"]], "category is ['mug']; it must be a string"),
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


def test_a_picture_opens_by_its_digest_and_nothing_else_does(address: str, pair: Pair) -> None:
    digest = pair.baseline.index.thumbnail_digest(0)
    with urllib.request.urlopen(f"{address}/picture/{digest}", timeout=20) as response:
        assert response.headers["Content-Type"] == "image/jpeg"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert Image.open(io.BytesIO(response.read())).size == (48, 32)
    for nothing in ("0" * 64, "0.png", "..%2f..%2fmanifest.json", "%2fetc%2fpasswd"):
        assert get(f"{address}/picture/{nothing}")[0] == 404


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


def test_a_count_that_is_none_is_refused_by_the_name_on_the_page(service: Service) -> None:
    for k in (3.5, 0, 51, None):
        status, *columns = run_query(service, "products", "red", None, "", k, insist=True)  # type: ignore[arg-type]
        assert f"Results per side is {k}; it must be a whole number from 1 to 50." in text_of(status)
        assert not any("<li" in column for column in columns)


def test_a_text_that_is_too_long_is_cut_and_the_page_says_so(service: Service) -> None:
    longest = "orange ".ljust(MAX_TEXT_CHARACTERS, "x")
    said = "Only the first 2,000 characters of the text were read."
    status, *columns = run_query(service, "products", longest, None, "", 5, insist=True)
    assert said not in text_of(status)
    cut, *cut_columns = run_query(service, "products", longest + "red", None, "", 5, insist=True)
    assert said in text_of(cut)
    assert [re.findall("data-item=.*?>", column) for column in cut_columns] == [
        re.findall("data-item=.*?>", column) for column in columns
    ]


def test_the_legend_explains_the_marks_that_there_are(service: Service) -> None:
    everything, *_ = run_query(service, "products", "orange", None, "", 50, insist=True)
    assert "fa-up" in everything and "fa-new" not in everything
    fewer = [run_query(service, "products", "orange", None, "", k, insist=True)[0] for k in range(1, 24)]
    assert any("fa-new" in status for status in fewer)


def test_an_answer_to_what_was_cleared_since_is_dropped(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    visit, asked = Visit(), ("products", "red", None, "", 5)
    assert "data-item" in answer(service, visit, *asked, 1, insist=True)[1]
    compare = service.compare

    def clear_meanwhile(*arguments: Any) -> Any:
        visit.clear(3)
        return compare(*arguments)

    monkeypatch.setattr(service, "compare", clear_meanwhile)
    assert answer(service, visit, *asked, 2, insist=True) == [gr.skip()] * 3
    monkeypatch.setattr(service, "compare", None)  # one that only now has its turn is not even searched
    assert answer(service, visit, *asked, 2, insist=True) == [gr.skip()] * 3
    monkeypatch.setattr(service, "compare", compare)
    assert "data-item" in answer(service, visit, *asked, 4, insist=True)[1]


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


def dependencies(address: str) -> list[dict[str, Any]]:
    _, config = get(f"{address}/config")
    return list(json.loads(config)["dependencies"])


def join(address: str, dependency: dict[str, Any], data: list[Any], session: str) -> None:
    """Send what the browser sends for an event of the page."""
    body = {"data": data, "fn_index": dependency["id"], "session_hash": session}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=20).close()


def completed(address: str, session: str) -> list[dict[str, Any]]:
    """Gradio's last message about each event of a session."""
    _, stream = get(f"{address}/gradio_api/queue/data?session_hash={session}")
    lines = [line for line in stream.decode().splitlines() if "process_completed" in line]
    return [dict(json.loads(line.removeprefix("data: "))) for line in lines]


def test_events_that_search_wait_for_each_other_and_quick_ones_lose_no_click(address: str) -> None:
    found = [entry for entry in dependencies(address) if entry["api_visibility"] == "private"]
    searches = [entry for entry in found if len(entry["outputs"]) == 3]
    quick = [entry for entry in found if entry not in searches]
    assert (len(searches), len(quick)) == (4, 3)
    assert {(entry["queue"], entry["trigger_mode"]) for entry in searches} == {(True, "always_last")}
    assert {(entry["queue"], entry["trigger_mode"]) for entry in quick} == {(False, "multiple")}
    clear = next(entry for entry in quick if len(entry["outputs"]) == 6)
    assert all(entry["js"] == clear["js"] for entry in searches), "searches and Clear are counted together"


def test_clear_drops_the_search_that_is_under_way(
    address: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = next(entry for entry in dependencies(address) if len(entry["outputs"]) == 3)
    clear = next(entry for entry in dependencies(address) if len(entry["outputs"]) == 6)
    compare, began, goes_on = service.compare, threading.Event(), threading.Event()

    def compare_slowly(*arguments: Any) -> Any:
        began.set()
        assert goes_on.wait(20)
        return compare(*arguments)

    monkeypatch.setattr(service, "compare", compare_slowly)
    join(address, search, [None, "products", "red", None, "", 5, 1], "clearing")
    assert began.wait(20)
    body = {"data": [None, "products", 2], "fn_index": clear["id"], "session_hash": "clearing"}
    request = urllib.request.Request(
        f"{address}/gradio_api/run/predict", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        assert json.load(response)["data"][:3] == ["", None, ""]
    goes_on.set()
    (dropped,) = completed(address, "clearing")
    assert dropped["success"] and "data-item" not in json.dumps(dropped["output"]["data"])

    join(address, search, [None, "products", "red", None, "", 5, 3], "clearing")
    (shown,) = completed(address, "clearing")
    assert 'data-item="red-0"' in shown["output"]["data"][1]


def test_the_category_is_chosen_not_typed(address: str) -> None:
    _, config = get(f"{address}/config")
    (menu,) = [entry for entry in json.loads(config)["components"] if entry["type"] == "dropdown"]
    assert menu["props"]["filterable"] is False


def search_with_photo(address: str, path: str) -> dict[str, Any]:
    """What the Search button sends, with a photo of our choice; Gradio's last message about it."""
    search = next(entry for entry in dependencies(address) if len(entry["outputs"]) == 3)
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    join(address, search, [None, "products", "", photo, "", 5, 1], "test")
    (done,) = completed(address, "test")
    return done


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
