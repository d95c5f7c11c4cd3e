"""Which Host and Origin headers are served: what a name may be mistaken for, written any way a client could write it.

A browser that is led to this server by somebody else's page (DNS rebinding, a plain cross-site request) still says in
these two headers whom it thinks it talks to and on whose behalf. Whatever is refused here, nothing has run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio

from harness import mcp
from harness.hybrid import running
from harness.process import ServerProcess, program, serve
from mcp_hybrid.security.patterns import HostTable, OriginTable

HOSTS = ["127.0.0.1", "localhost", "[::1]", "mcp.example.org", "fixed.example.org:8443"]
ORIGINS = ["http://127.0.0.1", "http://localhost", "http://[::1]", "https://fixed.example.org:8443"]
PAGES = ["https://app.example.org"]
SECURITY: dict[str, Any] = {
    "security": {"allowed_hosts": HOSTS, "allowed_origins": ORIGINS},
    "cors": {"allowed_origins": PAGES},
}
CALL = mcp.body(mcp.tool("add", {"a": 1, "b": 2}))

SERVED_HOSTS = {
    "as it is listed": "127.0.0.1",
    "any port": "127.0.0.1:8000",
    "the port of another service": "localhost:1",
    "another case": "LocalHost:8000",
    "IPv6": "[::1]",
    "IPv6 with a port": "[::1]:8000",
    "a name": "mcp.example.org",
    "a name with its port": "fixed.example.org:8443",
}

REFUSED_HOSTS = {
    "another name": "evil.example",
    "another name that leads here": "evil.example:8000",
    "a listed name as a subdomain": "localhost.evil.example",
    "a listed address as a subdomain": "127.0.0.1.evil.example:8000",
    "a subdomain of a listed name": "x.mcp.example.org",
    "a name that ends in a listed one": "evil-mcp.example.org",
    "a name that begins with a listed one": "mcp.example.organic",
    "a dot at the end": "mcp.example.org.",
    "a dot and a port": "localhost.:8000",
    "another loopback address": "127.0.0.2",
    "any address": "0.0.0.0:8000",
    "a short address": "127.1",
    "an address as one number": "2130706433",
    "an address in hexadecimal": "0x7f.0.0.1",
    "IPv6 without brackets": "::1",
    "IPv6 without brackets, with a port": "::1:8000",
    "IPv6 written out": "[0:0:0:0:0:0:0:1]",
    "IPv4 in IPv6": "[::ffff:127.0.0.1]",
    "IPv6 with a zone": "[::1%25lo]",
    "userinfo before a listed name": "evil.example@127.0.0.1",
    "userinfo like a listed name": "127.0.0.1:8000@evil.example",
    "a listed port missing": "fixed.example.org",
    "another port than the listed one": "fixed.example.org:443",
    "two ports": "127.0.0.1:8000:80",
    "no digits for a port": "127.0.0.1:",
    "a word for a port": "127.0.0.1:http",
    "an asterisk for a port": "127.0.0.1:*",
    "more digits than a port has": "127.0.0.1:100000",
    "an asterisk": "*",
    "nothing": "",
    "two in one": "127.0.0.1, evil.example",
    "a path behind it": "127.0.0.1/evil.example",
    "a blank before it": " 127.0.0.1",
    "a letter that looks like another": "loc\xe0lhost",
}

SERVED_ORIGINS = {
    "any port": "http://127.0.0.1:5173",
    "no port": "http://localhost",
    "another case": "HTTP://LOCALHOST:5173",
    "IPv6": "http://[::1]:5173",
    "a listed port": "https://fixed.example.org:8443",
    "a page that CORS admits": "https://app.example.org",
}

REFUSED_ORIGINS = {
    "another site": "https://evil.example",
    "null, as of a file or a sandboxed frame": "null",
    "nothing": "",
    "another scheme": "https://localhost",
    "no scheme": "localhost",
    "the other scheme of a page": "http://app.example.org",
    "a subdomain of a page's": "https://x.app.example.org",
    "a listed name as a subdomain": "https://app.example.org.evil.example",
    "a name that ends in a listed one": "https://evilapp.example.org",
    "a dot at the end": "https://app.example.org.",
    "userinfo like a listed name": "http://localhost@evil.example",
    "userinfo before a listed name": "http://evil.example@localhost",
    "another port than the listed one": "https://fixed.example.org:443",
    "a slash at the end": "http://localhost/",
    "a path": "http://localhost/evil",
    "two in one, with a blank": "http://localhost http://evil.example",
    "two in one, with a comma": "http://localhost, http://evil.example",
    "a file's": "file://",
    "an extension's": "chrome-extension://abcdefghijklmnop",
    "an asterisk": "*",
}


@pytest.mark.parametrize("host", SERVED_HOSTS.values(), ids=SERVED_HOSTS)
async def test_a_host_that_is_listed_is_served(host: str) -> None:
    async with running(**SECURITY) as setup:
        answer = await setup.client.request("POST", "/mcp", mcp.headers(None, None, ("host", host)), CALL)
        assert answer.status == 200
        assert setup.example.finished == ["add"]


@pytest.mark.parametrize("host", REFUSED_HOSTS.values(), ids=REFUSED_HOSTS)
async def test_a_host_that_is_not_is_refused(host: str) -> None:
    async with running(**SECURITY) as setup:
        for method in ("POST", "GET", "DELETE", "OPTIONS"):
            answer = await setup.client.request(method, "/mcp", mcp.headers(None, None, ("host", host)), CALL)
            assert (answer.status, answer.json()["error"]["code"]) == (421, -32600)
        assert setup.example.started == []


@pytest.mark.parametrize("origin", SERVED_ORIGINS.values(), ids=SERVED_ORIGINS)
async def test_an_origin_that_is_listed_is_served(origin: str) -> None:
    async with running(**SECURITY) as setup:
        answer = await setup.client.request("POST", "/mcp", mcp.headers(None, None, ("origin", origin)), CALL)
        assert answer.status == 200
        # What a page may read is decided by CORS alone.
        allowed = answer.header("access-control-allow-origin")
        assert allowed == (origin if origin in PAGES else None)


@pytest.mark.parametrize("origin", REFUSED_ORIGINS.values(), ids=REFUSED_ORIGINS)
async def test_an_origin_that_is_not_is_refused(origin: str) -> None:
    async with running(**SECURITY) as setup:
        for method in ("POST", "GET", "DELETE", "OPTIONS"):
            answer = await setup.client.request(method, "/mcp", mcp.headers(None, None, ("origin", origin)), CALL)
            assert (answer.status, answer.json()["error"]["code"]) == (403, -32600)
            assert answer.header("access-control-allow-origin") is None
        assert setup.example.started == []


async def test_a_request_without_an_origin_is_no_pages_and_is_served() -> None:
    async with running(**SECURITY) as setup:
        assert (await setup.client.request("POST", "/mcp", mcp.headers(), CALL)).status == 200


@pytest.mark.parametrize(("header", "allowed"), [("host", "localhost"), ("origin", "http://localhost")])
@pytest.mark.parametrize("other", ["localhost", "evil.example"])
async def test_two_of_a_kind_are_refused_as_somebody_in_between_may_have_judged_the_other(
    header: str, allowed: str, other: str
) -> None:
    values = (allowed, allowed.replace("localhost", other))
    for first, second in (values, values[::-1]):
        async with running(**SECURITY) as setup:
            both = [(header, first), (header, second)]
            answer = await setup.client.request("POST", "/mcp", mcp.headers(None, None, *both), CALL)
            assert answer.status == (400 if "evil" not in first else 421 if header == "host" else 403)
            assert setup.example.started == []


async def test_an_asterisk_serves_every_host_but_still_no_other_origin() -> None:
    async with running(security={"allowed_hosts": ["*"]}) as setup:
        host = ("host", "whatever.example:81")
        served = await setup.client.request("POST", "/mcp", mcp.headers(None, None, host), CALL)
        foreign = await setup.client.request(
            "POST", "/mcp", mcp.headers(None, None, host, ("origin", "http://whatever.example:81")), CALL
        )
        assert (served.status, foreign.status) == (200, 403)


GATE: dict[str, tuple[str, list[str], list[str]]] = {
    "a name": ("a.example", ["a.example", "A.Example:1"], ["b.a.example", "a.example.", "a.example:70000"]),
    "a name with a port": ("a.example:8443", ["a.example:8443", "a.example:08443"], ["a.example", "a.example:443"]),
    "the usual port, which is left out": ("a.example:443", ["a.example", "a.example:443"], ["a.example:80"]),
    "any port, written out": ("a.example:*", ["a.example", "a.example:9"], ["a.example:*"]),
    "subdomains": (
        "*.example.org",
        ["a.example.org", "a.b.example.org:81", "A.EXAMPLE.ORG"],
        [
            "example.org",
            "*.example.org",
            ".example.org",
            "a..example.org",
            "evil.org",
            "aexample.org",
            "a b.example.org",
            "a.example.org.evil.com",
            "a, b.example.org",
            "evil.com/.example.org",
            "u@a.example.org",
            "[::1].example.org",
        ],
    ),
    "subdomains on a port": ("*.example.org:8443", ["a.example.org:8443"], ["a.example.org", "example.org:8443"]),
    "every host on a port": ("*:8000", ["whatever:8000", "[::2]:8000"], ["whatever", "whatever:80"]),
    "IPv6 without brackets": ("::1", ["[::1]", "[::1]:8000"], ["::1", "[::2]"]),
    "IPv6 with a port": ("[::1]:8000", ["[::1]:8000"], ["[::1]", "[::1]:1"]),
    "IPv6 written out": ("[0:0:0:0:0:0:0:1]", ["[::1]"], ["[0:0:0:0:0:0:0:1]"]),
    "IPv4 in IPv6": ("::ffff:127.0.0.1", ["[::ffff:7f00:1]"], ["127.0.0.1"]),
}


@pytest.mark.parametrize("what", GATE)
async def test_an_entry_lets_in_what_it_means_and_nothing_else(what: str) -> None:
    entry, good, bad = GATE[what]
    async with running(security={"allowed_hosts": [entry]}) as setup:
        for host in (*good, *bad):
            answer = await setup.client.request("POST", "/mcp", mcp.headers(None, None, ("host", host)), CALL)
            assert answer.status == (200 if host in good else 421), host


PAGE_GATE: dict[str, tuple[str, list[str], list[str]]] = {
    "an origin": ("https://a.example", ["https://a.example", "https://a.example:443"], ["https://a.example:8443"]),
    "in capitals, with a slash": ("https://A.Example/", ["https://a.example"], ["https://a.example/"]),
    "a port": ("https://a.example:8443", ["https://a.example:8443"], ["https://a.example"]),
    "the usual port": ("http://a.example:80", ["http://a.example", "http://a.example:80"], ["http://a.example:443"]),
    "any port": ("https://a.example:*", ["https://a.example", "https://a.example:1"], ["http://a.example"]),
    "an extension": ("chrome-extension://abc", ["chrome-extension://abc"], ["chrome-extension://abcd"]),
    "null": ("null", ["null"], ["nul", ""]),
}


@pytest.mark.parametrize("what", PAGE_GATE)
async def test_a_page_is_let_in_and_may_read_or_neither(what: str) -> None:
    entry, good, bad = PAGE_GATE[what]
    async with running(cors={"allowed_origins": [entry]}, security={"allowed_origins": []}) as setup:
        for origin in (*good, *bad):
            answer = await setup.client.request("POST", "/mcp", mcp.headers(None, None, ("origin", origin)), CALL)
            read = answer.header("access-control-allow-origin")
            assert (answer.status, read) == ((200, origin) if origin in good else (403, None)), origin


@pytest.mark.parametrize("header", ["host", "origin"])
async def test_a_refusal_names_the_setting_that_helps(header: str) -> None:
    async with running(**SECURITY) as setup:
        extra = (header, "evil.example" if header == "host" else "https://evil.example")
        answer = await setup.client.request("POST", "/mcp", mcp.headers(None, None, extra), CALL)
        message = answer.json()["error"]["message"]
    names = ["security.allowed_hosts"] if header == "host" else ["security.allowed_origins", "cors.allowed_origins"]
    assert [name for name in names if name in message] == names


def test_what_strangers_send_is_remembered_within_bounds() -> None:
    hosts, origins = HostTable(["a.example"]), OriginTable(["https://a.example"])
    for number in range(2000):
        assert f"{number}.{'x' * 30_000}" not in hosts
        assert f"https://{number}.{'x' * 30_000}" not in origins
        assert f"{number}.example" not in hosts
    assert hosts._admits.cache_info().currsize <= 256
    assert origins._admits.cache_info().currsize == 0


# What only a socket can carry


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serve(program("gated")) as process:
        yield process


LENGTH = f"content-type: application/json\r\ncontent-length: {len(CALL)}\r\nconnection: close\r\n"
ON_THE_WIRE = {
    "HTTP/1.1 with its host": ("POST /mcp HTTP/1.1\r\nhost: localhost\r\n", 200),
    "HTTP/1.0 with a host": ("POST /mcp HTTP/1.0\r\nhost: localhost\r\n", 200),
    "HTTP/1.0 without a host": ("POST /mcp HTTP/1.0\r\n", 421),
    "HTTP/1.1 without a host": ("POST /mcp HTTP/1.1\r\n", 400),
    "two hosts": ("POST /mcp HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n", 400),
    "two hosts, the other way round": ("POST /mcp HTTP/1.1\r\nhost: evil.example\r\nhost: localhost\r\n", 400),
    "a host folded over two lines": ("POST /mcp HTTP/1.1\r\nhost: evil.example\r\n localhost\r\n", 421),
    "a blank before the colon": ("POST /mcp HTTP/1.1\r\nhost : localhost\r\n", 400),
    "absolute form of a foreign host": ("POST http://evil.example/mcp HTTP/1.1\r\nhost: localhost\r\n", 404),
    "absolute form of this host": ("POST http://localhost/mcp HTTP/1.1\r\nhost: localhost\r\n", 404),
    "absolute form, and a foreign header": ("POST http://localhost/mcp HTTP/1.1\r\nhost: evil.example\r\n", 404),
    "authority form": ("CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n", 404),
    "asterisk form": ("OPTIONS * HTTP/1.1\r\nhost: evil.example\r\n", 404),
    "two slashes, as of a path that is a host": ("POST //evil.example/mcp HTTP/1.1\r\nhost: localhost\r\n", 404),
}


@pytest.mark.process
@pytest.mark.parametrize(("head", "status"), ON_THE_WIRE.values(), ids=ON_THE_WIRE)
async def test_a_head_that_is_odd_on_the_wire_is_served_or_refused(
    server: ServerProcess, head: str, status: int
) -> None:
    answer = b""
    with trio.fail_after(30):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(f"{head}{LENGTH}\r\n".encode() + CALL)
            while chunk := await stream.receive_some(65536):
                answer += chunk
    assert int(answer.split(b" ", 2)[1]) == status, answer
