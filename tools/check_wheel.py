"""Builds the wheel, installs it into a clean environment, and runs its command there as a stranger would.

    python tools/check_wheel.py [--quick]

--quick downloads nothing: the wheel is built, and run with the packages of this environment.
"""

# a script, not a package; it runs programs that it names itself

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
START = 30.0
"""Seconds the server may take until it answers."""


def main() -> None:
    """Build, install, and try `version`, `check` and `serve`; anything that goes wrong ends the script."""
    parser = argparse.ArgumentParser(description="Build the wheel and try what is in it.")
    parser.add_argument("--quick", action="store_true", help="use the packages of this environment")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        folder = Path(name)
        wheel = build(folder, isolated=not quick)
        look_into(wheel)
        command = unpack(wheel, folder) if quick else install(wheel, folder)
        say(f"the wheel's command: mcp-hybrid {run(command, 'version', cwd=folder).strip()}")
        run(command, "check", cwd=folder)
        with serving(command, folder) as url:
            tools = ask(url)
        if "add" not in tools:
            sys.exit(f"the wheel's server lists {tools}, and add is not among them")
    say("the wheel serves its demo")


def build(folder: Path, *, isolated: bool) -> Path:
    """Build the wheel outside the sources, in an environment of its own or with the build backend of this one."""
    how = () if isolated else ("--no-isolation",)
    run(Path(sys.executable), "-m", "build", "--wheel", *how, "--outdir", str(folder), str(ROOT), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def look_into(wheel: Path) -> None:
    """See that what type checkers need is in it: nothing that is run would miss it."""
    with ZipFile(wheel) as file:
        if "mcp_hybrid/py.typed" not in file.namelist():
            sys.exit("the wheel has no mcp_hybrid/py.typed, so its types count for nobody")


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel with what it needs at run time, and give its command."""
    binaries = folder / "venv" / "bin"
    run(Path(sys.executable), "-m", "venv", str(folder / "venv"), cwd=folder)
    run(binaries / "python", "-m", "pip", "install", "--disable-pip-version-check", str(wheel), cwd=folder)
    return binaries / "mcp-hybrid"


def unpack(wheel: Path, folder: Path) -> Path:
    """Install the wheel alone, into an environment that takes the rest from this one, and give its command."""
    place = folder / "venv"
    venv.create(place, symlinks=True, with_pip=False)
    (packages,) = place.glob("lib/python*/site-packages")
    pip = ("-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--target", str(packages))
    run(Path(sys.executable), *pip, str(wheel), cwd=folder)
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    command = packages / "bin" / "mcp-hybrid"
    script = command.read_text(encoding="utf-8").partition("\n")[2]
    command.write_text(f"#!{place / 'bin' / 'python'}\n{script}", encoding="utf-8")
    return command


def run(program: Path, *arguments: str, cwd: Path) -> str:
    """Run to the end and give the output; a failure ends the script with it."""
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env=clean(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{program.name} {' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}")
    return done.stdout


def clean() -> dict[str, str]:
    """Give an environment that shows nothing of this checkout or its settings."""
    hidden = ("MCP_HYBRID_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


@contextmanager
def serving(command: Path, folder: Path) -> Iterator[str]:
    """Serve the demo on a free port, and stop it in order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("w+b") as log:
        server = subprocess.Popen(
            [command, "serve", "--port", str(port)], cwd=folder, env=clean(), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_for(port, server)
            yield f"http://127.0.0.1:{port}/mcp"
        except BaseException:
            say((folder / "log").read_text(errors="replace"))
            raise
        finally:
            server.terminate()
            code = server.wait(START)
    if code != 0:
        sys.exit(f"the wheel's server ended with {code}")


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the port answers."""
    until = time.monotonic() + START
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit("the wheel's server did not start")


def ask(url: str) -> list[str]:
    """List the tools, as curl would: without a session."""
    message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
    request = urllib.request.Request(  # noqa: S310  # the address is our own
        url, message, {"content-type": "application/json", "accept": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=START) as answer:  # noqa: S310  # as above
        return [tool["name"] for tool in json.load(answer)["result"]["tools"]]


def say(line: str) -> None:
    """Tell the person."""
    print(line, flush=True)  # a script's output


if __name__ == "__main__":
    main()
