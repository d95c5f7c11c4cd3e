"""nginx and Caddy in front of a server, with the files of `config/` as they are shipped.

Only what stands around them is written here: where to listen, where the upstream is, where temporary files go.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from harness.process import ServerProcess
from harness.tools import need

CONFIG = Path(__file__).parent.parent.parent / "config"
NGINX_SNIPPET = CONFIG / "nginx.conf"
CADDYFILE = CONFIG / "Caddyfile"

_NGINX_MAIN = """\
daemon off;
master_process off;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {sites}
}}
"""

_NGINX_SITE = """\
    upstream mcp_hybrid {{
        {upstreams}
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port};
        include {snippet};
    }}
"""

_CADDY_MAIN = """\
{{
    admin off
    auto_https off
}}
import {caddyfile}
"""


def nginx(*upstreams: int, snippet: Path = NGINX_SNIPPET) -> AbstractContextManager[ServerProcess]:
    """Run nginx in front of these ports."""
    servers = " ".join(f"server 127.0.0.1:{upstream};" for upstream in upstreams)
    return nginx_with(lambda port: _NGINX_SITE.format(upstreams=servers, port=port, snippet=snippet))


@contextmanager
def nginx_with(sites: Callable[[int], str]) -> Iterator[ServerProcess]:
    """Run nginx with sites that listen on the port they are given."""
    program = need("nginx")
    with tempfile.TemporaryDirectory(prefix="nginx-") as name:
        main = Path(name) / "nginx.conf"

        def argv(port: int) -> Sequence[str]:
            main.write_text(_NGINX_MAIN.format(folder=name, sites=sites(port)), encoding="utf-8")
            return [program, "-p", name, "-c", str(main)]

        with ServerProcess(argv) as process:
            yield process


def is_old(caddy: str) -> bool:
    """Whether this Caddy is Debian's, which wants to be told otherwise that it is to take requests in whole."""
    version = subprocess.run([caddy, "version"], capture_output=True, text=True, check=True).stdout
    return version.removeprefix("v").startswith("2.6.2")


@contextmanager
def caddy(*upstreams: int, caddyfile: Path = CADDYFILE) -> Iterator[ServerProcess]:
    """Run Caddy in front of these ports."""
    program = need("caddy")
    with tempfile.TemporaryDirectory(prefix="caddy-") as name:
        main = Path(name) / "Caddyfile"
        main.write_text(_CADDY_MAIN.format(caddyfile=caddyfile), encoding="utf-8")
        command = [program, "run", "--adapter", "caddyfile", "--config", str(main)]
        env = {
            **({"MCP_BUFFER": "buffer_requests"} if is_old(program) else {}),
            "MCP_UPSTREAM": " ".join(f"127.0.0.1:{upstream}" for upstream in upstreams),
            "XDG_DATA_HOME": name,
            "XDG_CONFIG_HOME": name,
            "HOME": name,
        }

        def argv(port: int) -> Sequence[str]:
            # Caddy reads it from its environment, which is fixed before the port is known.
            return ["env", f"MCP_SITE=http://127.0.0.1:{port}", *command]

        with ServerProcess(argv, env) as process:
            yield process
