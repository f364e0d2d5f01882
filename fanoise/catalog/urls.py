"""Images behind URLs, fetched when they are opened, from public addresses only.

The list of URLs is not trusted: it could name the machine itself or its neighbours (a cloud's metadata service, an
intranet) and so carry what they answer into the index. A name's addresses are therefore looked up once, all of them are
checked, and the connection goes to the address that was checked, so that the name cannot mean another one a moment
later. Each redirect is checked the same way. Proxies are not used, since they would look names up themselves.
"""

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

from fanoise.errors import ImageError, one_line

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPV6_PUBLIC = ipaddress.ip_network("2000::/3")
# public by their number only: services of a machine's own host (Oracle Cloud, Azure)
_HOST_SERVICES = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))


@dataclass(frozen=True)
class RemoteImage:
    """An image behind an http or https URL."""

    url: str
    timeout_s: float = 20.0
    """For the whole image with its redirects; only the system's look-up of names has time limits of its own."""
    max_bytes: int = 32 * 2**20

    def read(self) -> bytes:
        """Fetch the file. Raises: ImageError."""
        deadline = time.monotonic() + self.timeout_s
        url = self.url
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                answer = _get(url, deadline, self.max_bytes)
            except _Refused as error:
                raise ImageError(str(error), self) from None
            except TimeoutError:
                raise ImageError(f"no whole answer within {self.timeout_s:g} s", self) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise ImageError(f"cannot be fetched ({one_line(error)})", self) from None
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise ImageError(f"redirected more than {_MAX_REDIRECTS} times", self)

    def __str__(self) -> str:
        return self.url


class _Refused(Exception):
    """We will not, or cannot, take this; the message is the reason."""


def is_public(address: str) -> bool:
    """Whether an IP address is one that anyone on the internet could reach."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:  # how a network without IPv4 reaches it; the IPv4 address is in the last four bytes
            return is_public(str(ipaddress.IPv4Address(ip.packed[-4:])))
        if ip not in _IPV6_PUBLIC or ip.sixtofour is not None or ip.teredo is not None:
            return False
    # is_global alone lets multicast through
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _HOST_SERVICES)


def _get(url: str, deadline: float, max_bytes: int) -> bytes | str:
    """The file's bytes, or the URL it redirects to."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise _Refused(f"leads to {parts.scheme or 'no'!r}, must be http or https")
    if not parts.hostname or parts.username is not None:
        raise _Refused("a URL needs a host, and may not have a user name")
    connection = _Connection(parts.hostname, parts.port, is_tls=parts.scheme == "https", deadline=deadline)
    try:
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~?')}" if parts.query else ""
        headers = {"User-Agent": "fanoise", "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
        connection.request("GET", target + query, headers=headers)
        answer = connection.getresponse()
        if answer.status in _REDIRECTS and (place := answer.getheader("Location")):
            return urllib.parse.urljoin(url, place)
        if answer.status != 200:
            raise _Refused(f"the server answered {answer.status} {answer.reason}".strip())
        if (answer.length or 0) > max_bytes:
            raise _Refused(f"{answer.length} bytes, more than the limit of {max_bytes}")
        data = bytearray()
        while piece := answer.read(65536):
            data += piece
            if len(data) > max_bytes:
                raise _Refused(f"more bytes than the limit of {max_bytes}")
        if answer.length:
            raise _Refused(f"the connection ended {answer.length} bytes early")
        return bytes(data)
    finally:
        connection.close()


def _addresses(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """(family, socket address) of a host, all of them public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a label that is empty or longer than 63
        raise _Refused(f"unknown host {host!r}") from None
    for *_, address in found:
        if not is_public(str(address[0])):
            raise _Refused(f"{host!r} is at {address[0]}, which is not a public address")
    return [(family, address) for family, _, _, _, address in found]


class _Deadline:
    """For sockets: all that is received must have come before `deadline`, however slowly it drips."""

    deadline: float

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_left(self.deadline))  # type: ignore[attr-defined]
        return super().recv_into(*args)  # type: ignore[misc]


class _Socket(_Deadline, socket.socket):
    pass


class _TlsSocket(_Deadline, ssl.SSLSocket):
    pass


class _Connection(http.client.HTTPConnection):
    """Connects to an address that was checked, and to nothing else."""

    def __init__(self, host: str, port: int | None, *, is_tls: bool, deadline: float) -> None:
        self.default_port = http.client.HTTPS_PORT if is_tls else http.client.HTTP_PORT
        # with no port given, http.client would look for one in an IPv6 address
        super().__init__(host, self.default_port if port is None else port)
        self._is_tls, self._deadline = is_tls, deadline

    def connect(self) -> None:
        failure: OSError | None = None
        for family, address in _addresses(self.host, self.port):
            raw = _Socket(family, socket.SOCK_STREAM)
            raw.deadline = self._deadline
            try:
                raw.settimeout(_left(self._deadline))
                raw.connect(address)
                self.sock = self._secured(raw) if self._is_tls else raw
                return
            except OSError as error:
                raw.close()
                failure = error
        raise failure or OSError("no address")

    def _secured(self, raw: socket.socket) -> ssl.SSLSocket:
        context = ssl.create_default_context()
        context.sslsocket_class = _TlsSocket
        secured = context.wrap_socket(raw, server_hostname=self.host)
        assert isinstance(secured, _TlsSocket)
        secured.deadline = self._deadline
        return secured


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
