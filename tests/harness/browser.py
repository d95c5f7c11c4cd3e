"""A real Chromium, without a window, and a web server whose pages tell the test what they saw.

A page reports by POSTing JSON to `/report` of the server it came from, or of another one; the test waits for that, so
nothing is judged by the clock.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from harness.tools import need

PAGES = Path(__file__).parent.parent / "pages"

PATIENCE = 120.0
"""Seconds for a page to report. Chromium takes a few to start on a busy machine."""

EVIL = "evil.example"
"""A name that leads to this machine, in the browser only."""

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    f"--host-resolver-rules=MAP {EVIL} 127.0.0.1, EXCLUDE localhost",
)


class Site:
    """A web server with pages, which collects what they report."""

    def __init__(self, pages: Mapping[str, str], port: int = 0) -> None:
        self.pages = dict(pages)
        self.reports: queue.Queue[Any] = queue.Queue()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = site.pages.get(self.path.partition("?")[0])
                self._answer(404 if page is None else 200, (page or "").encode())

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/report":
                    site.reports.put(json.loads(sent))
                self._answer(200 if self.path == "/report" else 404, b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give the port back. A second time does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, page: str, host: str = "127.0.0.1", **query: str) -> str:
        """Give the address of a page, under another name of this machine where `host` is one."""
        return f"http://{host}:{self.port}/{page}?{urlencode(query)}"

    def report(self) -> Any:
        """Wait for what a page reports."""
        return self.reports.get(timeout=PATIENCE)


@contextmanager
def site(*pages: str, port: int = 0) -> Iterator[Site]:
    """Serve these files of `tests/pages`, each by its name without the ending."""
    served = Site({f"/{page}": (PAGES / f"{page}.html").read_text(encoding="utf-8") for page in pages}, port)
    served.start()
    try:
        yield served
    finally:
        served.stop()


@contextmanager
def chromium(url: str, *flags: str) -> Iterator[None]:
    """Open a page in a browser that has never been anywhere."""
    program = need("chromium")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *_FLAGS, *flags, f"--user-data-dir={profile}", url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
            start_new_session=True,
        )
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
