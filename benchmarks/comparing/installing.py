"""The peers and the load generator, installed once below `.cache/bench` and named after what was asked for.

Each peer has an environment of its own, so that none decides the versions of another, nor of the project.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from harness.installing import filled

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "bench"
SERVERS = HERE / "servers"

ENVIRONMENTS = {
    "sdk": ("mcp>=2.3,<3", "hypercorn==0.18.*", "trio", "uvicorn[standard]>=0.40,<1"),
    "fastmcp": ("fastmcp>=4,<5", "uvicorn[standard]>=0.40,<1"),
}
"""What pip installs for each; uvicorn's `standard` brings uvloop and httptools."""
NODE_PACKAGES = ("@modelcontextprotocol/sdk@~1.32.2",)
TYPESCRIPT = "typescript.mjs"

SHOW_VERSIONS = """
import importlib.metadata, json
print(json.dumps({each.name.lower(): each.version for each in importlib.metadata.distributions()}))
"""


class NotInstalledError(Exception):
    """The installation of a peer failed."""


class MissingProgramError(Exception):
    """A peer runs on a program that this machine does not have."""


def python(name: str) -> Path:
    """Return the Python that has one of `ENVIRONMENTS`."""
    wanted = ENVIRONMENTS[name]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"

    def fill(place: Path) -> None:
        venv.create(place, with_pip=True)
        pip = [str(_python_in(place)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *wanted], place)

    return _python_in(_filled(f"{name}-{version}", wanted, fill))


def node() -> tuple[str, Path]:
    """Return the Node of this machine, and the TypeScript SDK's server beside the packages that it imports."""
    program = shutil.which("node")
    if program is None or shutil.which("npm") is None:
        raise MissingProgramError("node and npm were not found: install Node.js")

    def fill(place: Path) -> None:
        options = ["--prefix", str(place), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run(["npm", "install", *options, *NODE_PACKAGES], place)

    place = _filled("node", NODE_PACKAGES, fill)
    return program, Path(shutil.copy(SERVERS / TYPESCRIPT, place))


def wrk() -> str | None:
    """Return the program wrk, which is installed where this can be done; None where it is not to be had."""
    if shutil.which("wrk") is None and shutil.which("apt-get") is not None and os.geteuid() == 0:
        print("installing wrk", file=sys.stderr, flush=True)
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", "wrk"]):
            subprocess.run(["apt-get", "-qq", *command], env=environ, stdout=subprocess.DEVNULL, check=False)
    return shutil.which("wrk")


def wrk_version(program: str) -> str:
    """Read the version of wrk, which ends with an error whenever it was given no address."""
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stdout
    return told.split()[1].rpartition("/")[2]


def python_versions(program: Path, names: Sequence[str]) -> dict[str, str]:
    """Read which versions of these packages a Python has."""
    shown = subprocess.run([str(program), "-c", SHOW_VERSIONS], capture_output=True, text=True, check=True).stdout
    found = json.loads(shown)
    return {name: found[name] for name in names if name in found}


def node_versions(program: str, script: Path) -> dict[str, str]:
    """Read the versions of Node and of the packages beside `script`."""
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    names = [package.rpartition("@")[0] for package in NODE_PACKAGES]
    folder = script.parent / "node_modules"
    return {"node": version.strip().removeprefix("v")} | {
        name: json.loads((folder / name / "package.json").read_text())["version"] for name in names
    }


def _filled(name: str, wanted: Sequence[str], fill: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, named after what is in it."""
    return filled(CACHE / f"{name}-{sha256(repr(wanted).encode()).hexdigest()[:8]}", fill)


def _python_in(place: Path) -> Path:
    return place / "bin" / "python"


def _run(command: Sequence[str], place: Path) -> None:
    done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise NotInstalledError(f"{command[0]} failed:\n{done.stdout}")
