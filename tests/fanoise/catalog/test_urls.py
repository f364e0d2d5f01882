import contextlib
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fanoise.catalog import RemoteImage, read_catalog
from fanoise.catalog import urls as urls_module
from fanoise.catalog.urls import is_public
from fanoise.errors import ImageError
from fanoise.images import open_image
from tests.fanoise.catalog.files import RED, png, write

HERE = "127.0.0.1"


class Server:
    """An HTTP server on this machine; `answer` is called with the handler of each request."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answer = lambda handler: self.send(handler, png())
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.paths.append(self.path)
                outer.headers.append(dict(self.headers))
                with contextlib.suppress(OSError):  # the client may have had enough
                    outer.answer(self)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer((HERE, 0), Handler)
        self._server.handle_error = lambda *_: None
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_port
        self.url = f"http{'s' if tls else ''}://{HERE}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @staticmethod
    def send(handler, body=b"", status=200, **headers):
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def allow_here(monkeypatch):
    """Take 127.0.0.1, and only that of this machine's addresses, for a public one."""
    monkeypatch.setattr(urls_module, "is_public", lambda address: address == HERE or is_public(address))


@pytest.fixture
def names(monkeypatch):
    """What host names stand for; every look-up is recorded."""
    table: dict[str, list[str]] = {}
    lookups: list[str] = []
    real = socket.getaddrinfo

    def look_up(host, port, *args, **options):
        lookups.append(host)
        if host not in table:
            raise socket.gaierror(-2, "Name or service not known")
        return [found for address in table[host] for found in real(address, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    table["lookups"] = lookups
    return table


# which addresses


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808", "1.1.1.1"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",  # metadata of most clouds
        "100.64.0.1",
        "100.100.100.200",  # metadata of Alibaba Cloud
        "192.0.0.192",  # metadata of Oracle Cloud
        "168.63.129.16",  # a host's services on Azure
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",  # metadata of AWS
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2001:0:53aa:64c:0:fbff:80ff:fffe",  # Teredo
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "100::1",
        "4000::1",
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_this_machine_is_never_asked_however_it_is_spelt(server, scheme, host):
    with pytest.raises(ImageError, match=r"is not a public address|unknown host"):
        open_image(RemoteImage(f"{scheme}://{host}:{server.port}/a.png"))
    assert not server.paths


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["2606:4700::1", "::1"]])
def test_a_name_with_an_address_inside_is_refused_whatever_else_it_has(names, addresses):
    names["shop.example"] = addresses
    with pytest.raises(ImageError, match=rf"'shop.example' is at {addresses[-1]}, which is not a public address"):
        RemoteImage("http://shop.example/a.png").read()


def test_a_name_is_looked_up_once_and_that_address_is_connected_to(server, allow_here, monkeypatch):
    answers = iter([HERE, "169.254.169.254"])
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **options: real(next(answers), port, **options))
    connected = []
    connect = urls_module._Socket.connect
    monkeypatch.setattr(
        urls_module._Socket, "connect", lambda self, address: (connected.append(address), connect(self, address))
    )
    assert RemoteImage(f"http://rebinding.example:{server.port}/a.png").read() == png()
    assert connected == [(HERE, server.port)]
    assert server.headers[0]["Host"] == f"rebinding.example:{server.port}"
    assert next(answers) == "169.254.169.254"  # never asked for


def test_another_address_of_the_name_is_tried_when_one_does_not_answer(server, allow_here, names, monkeypatch):
    monkeypatch.setattr(urls_module, "is_public", lambda address: True)
    names["shop.example"] = ["127.0.0.9", HERE]
    assert RemoteImage(f"http://shop.example:{server.port}/a.png").read() == png()


# fetching


def test_an_image_is_fetched_when_it_is_opened(server, allow_here, tmp_path):
    path = write(tmp_path / "a.csv", [{"image": f"{server.url}/a.png"}])
    (item,) = read_catalog(path, allow_urls=True)
    assert not server.paths
    assert open_image(item.image).getpixel((0, 0)) == RED
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("", "/"),
        ("/a b/ä.png?x=1&y=ü z#part", "/a%20b/%C3%A4.png?x=1&y=%C3%BC%20z"),
        ("/a%20b%2Fc.png?u=http://x/%20", "/a%20b%2Fc.png?u=http://x/%20"),
        ("/a\r\nX-Evil: 1\r\n", "/aX-Evil:%201"),
    ],
)
def test_what_is_asked_for_is_spelt_as_http_wants(server, allow_here, path, asked):
    RemoteImage(server.url + path).read()
    assert server.paths == [asked]
    assert "X-Evil" not in server.headers[0]


def test_what_the_server_calls_an_image_is_decided_by_decoding(server, allow_here):
    server.answer = lambda handler: server.send(handler, b"<html>", Content_Type="image/png")
    with pytest.raises(ImageError, match=rf"image '{server.url}/a': not an image of a known format"):
        open_image(RemoteImage(f"{server.url}/a"))
    server.answer = lambda handler: server.send(handler, png(), Content_Type="text/html")
    assert open_image(RemoteImage(f"{server.url}/a")).getpixel((0, 0)) == RED


def test_proxies_are_not_used(server, allow_here, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert RemoteImage(f"{server.url}/a").read() == png()


@pytest.mark.parametrize("status", [204, 206, 304, 404, 500])
def test_only_an_ordinary_answer_is_taken(server, allow_here, status):
    server.answer = lambda handler: server.send(handler, b"", status)
    with pytest.raises(ImageError, match=f"the server answered {status}"):
        RemoteImage(f"{server.url}/a").read()


def test_a_server_that_speaks_no_http_is_an_image_error(server, allow_here):
    for answer in (
        b"hello\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 5000,
        b"HTTP/1.1 200 " + b"x" * 100_000,
    ):
        server.answer = lambda handler, answer=answer: handler.wfile.write(answer)
        with pytest.raises(ImageError, match="cannot be fetched") as error:
            RemoteImage(f"{server.url}/a").read()
        assert "\n" not in str(error.value)


def test_a_server_that_is_not_there_is_an_image_error(allow_here, names):
    with socket.socket() as free:
        free.bind((HERE, 0))
        port = free.getsockname()[1]
    names[HERE] = [HERE]
    with pytest.raises(ImageError, match=r"cannot be fetched \(Connection refused\)"):
        RemoteImage(f"http://{HERE}:{port}/").read()
    with pytest.raises(ImageError, match=r"unknown host 'gone\.example'"):
        RemoteImage("https://gone.example/").read()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://user:secret@example.org/a.png", "may not have a user name"),
        ("http://user@example.org/a.png", "may not have a user name"),
        ("http:///a.png", "a URL needs a host"),
        ("http://[::1/a.png", "cannot be fetched"),
        ("http://example.org:99999/a.png", "cannot be fetched"),
        ("http://example.org:x/a.png", "cannot be fetched"),
        ("http://" + "a" * 300 + ".org/a.png", "unknown host|cannot be fetched"),
        ("http://a..b/", "unknown host"),
        ("file:///etc/passwd", "must be http or https"),
    ],
)
def test_urls_that_cannot_be_meant(names, url, reason):
    with pytest.raises(ImageError, match=reason):
        RemoteImage(url).read()


# redirects


def redirect_to(server, *places, status=302):
    places = iter(places)

    def answer(handler):
        place = next(places, None)
        server.send(
            handler, png() if place is None else b"", **({"status": status, "Location": place} if place else {})
        )

    server.answer = answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_relative_ones_too(server, allow_here, status):
    redirect_to(server, "/b/c?x", "d", f"{server.url}/e", status=status)
    assert RemoteImage(f"{server.url}/a").read() == png()
    assert server.paths == ["/a", "/b/c?x", "/b/d", "/e"]


def test_five_redirects_are_enough(server, allow_here):
    redirect_to(server, *"bcdef")
    assert RemoteImage(f"{server.url}/a").read() == png()
    redirect_to(server, *"bcdefg")
    with pytest.raises(ImageError, match="redirected more than 5 times"):
        RemoteImage(f"{server.url}/a").read()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", "is at 169.254.169.254, which is not a public address"),
        ("//127.0.0.2/a", "is at 127.0.0.2, which is not a public address"),
        ("http://[::1]/a", "is at ::1, which is not a public address"),
        ("file:///etc/passwd", "leads to 'file', must be http or https"),
        ("ftp://example.org/a.png", "leads to 'ftp', must be http or https"),
        ("http://user@example.org/", "may not have a user name"),
    ],
)
def test_a_redirect_is_checked_like_the_first_url(server, allow_here, place, reason):
    redirect_to(server, place)
    with pytest.raises(ImageError, match=reason):
        RemoteImage(f"{server.url}/a").read()
    assert server.paths == ["/a"]


def test_a_redirect_to_nowhere_is_no_answer(server, allow_here):
    server.answer = lambda handler: server.send(handler, b"", 302)
    with pytest.raises(ImageError, match="the server answered 302"):
        RemoteImage(f"{server.url}/a").read()


# limits


def test_a_file_that_says_it_is_too_large_is_not_read(server, allow_here):
    server.answer = lambda handler: server.send(handler, b"", Content_Length="1001")
    with pytest.raises(ImageError, match="1001 bytes, more than the limit of 1000"):
        RemoteImage(f"{server.url}/a", max_bytes=1000).read()


def test_the_size_limit_holds_for_an_answer_without_a_length(server, allow_here):
    sent = 0

    def endless(handler):
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while sent < 50_000_000:
            handler.wfile.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            sent += 10_000

    server.answer = endless
    with pytest.raises(ImageError, match="more bytes than the limit of 100000"):
        RemoteImage(f"{server.url}/a", max_bytes=100_000).read()
    assert sent < 20_000_000  # what the system buffers in between


def test_the_size_limit_is_exact(server, allow_here):
    server.answer = lambda handler: server.send(handler, b"x" * 1000)
    assert len(RemoteImage(f"{server.url}/a", max_bytes=1000).read()) == 1000


def test_half_a_file_is_not_taken_for_the_whole(server, allow_here):
    server.answer = lambda handler: server.send(handler, png(), Content_Length=str(len(png()) + 9))
    with pytest.raises(ImageError, match=r"ended 9 bytes early|cannot be fetched \(IncompleteRead"):
        RemoteImage(f"{server.url}/a").read()


def dripping(prefix):
    """An answer that takes 20 s unless the client ends it before, and the event that it did not."""
    ended = threading.Event()

    def drip(handler):
        handler.wfile.write(prefix)
        for _ in range(400):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)
        ended.set()

    return drip, ended


@pytest.mark.parametrize("prefix", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_the_time_limit_holds_for_an_answer_that_drips(server, allow_here, prefix):
    server.answer, ended = dripping(prefix)
    with pytest.raises(ImageError, match=r"no whole answer within 0\.3 s"):
        RemoteImage(f"{server.url}/a", timeout_s=0.3).read()
    assert not ended.is_set()


def test_the_time_limit_is_for_all_redirects_together(server, allow_here):
    def slow(handler):
        time.sleep(0.15)
        server.send(handler, b"", 302, Location="/a")

    server.answer = slow
    with pytest.raises(ImageError, match=r"no whole answer within 0\.4 s"):
        RemoteImage(f"{server.url}/a", timeout_s=0.4).read()
    assert len(server.paths) <= 3


# TLS


CERTIFICATE = Path(__file__).parent / "tls"
"""A key that protects nothing, and its certificate for shop.example, signed by itself, valid for a hundred years."""


@pytest.fixture
def tls_server():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE / "cert.pem", CERTIFICATE / "key.pem")
    server = Server(context)
    yield server
    server.close()


def trust(monkeypatch):
    real = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: real(cafile=str(CERTIFICATE / "cert.pem")))


def test_a_server_with_a_trusted_certificate_for_its_name_is_read(tls_server, allow_here, names, monkeypatch):
    trust(monkeypatch)
    names["shop.example"] = [HERE]
    assert RemoteImage(f"https://shop.example:{tls_server.port}/a.png").read() == png()
    assert tls_server.headers[0]["Host"] == f"shop.example:{tls_server.port}"


def test_a_certificate_of_another_name_or_of_nobody_is_refused(tls_server, allow_here, names, monkeypatch):
    names["shop.example"] = names["other.example"] = [HERE]
    with pytest.raises(ImageError, match=r"cannot be fetched \(.*certificate"):
        RemoteImage(f"https://shop.example:{tls_server.port}/a.png").read()
    trust(monkeypatch)
    with pytest.raises(ImageError, match=r"cannot be fetched \(.*certificate"):
        RemoteImage(f"https://other.example:{tls_server.port}/a.png").read()
    assert not tls_server.paths


def test_the_time_limit_holds_under_tls(tls_server, allow_here, names, monkeypatch):
    trust(monkeypatch)
    names["shop.example"] = [HERE]

    tls_server.answer, ended = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    with pytest.raises(ImageError, match=r"no whole answer within 0\.5 s"):
        RemoteImage(f"https://shop.example:{tls_server.port}/a.png", timeout_s=0.5).read()
    assert not ended.is_set()
