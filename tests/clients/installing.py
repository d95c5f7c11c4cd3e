"""The clients that are not in the environment of the tests, installed once into a cache and pinned to the last file.

They are kept in .cache/clients, or in `clients` under the folder that TESTS_CACHE names. What is kept is named
after what was asked for, so a changed pin is a new folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from harness.installing import filled

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

NODE = (22, 19)
"""The oldest Node that all of them run on."""
NODE_PACKAGE = "node@22.23.3"
"""What is used where the machine's is older."""


class NotInstalledError(Exception):
    """A client cannot be had here: one line that says why."""


@dataclass(frozen=True)
class Installed:
    """Where the clients are."""

    node: str
    npm: Path
    """The folder above `node_modules`; the drivers in JavaScript are copied into it, as they import from there."""
    sdk1: Path
    """The Python that has SDK 1."""

    def version(self, package: str) -> str:
        """Read the version of an installed npm package."""
        found: str = json.loads((self.npm / "node_modules" / package / "package.json").read_text())["version"]
        return found

    @property
    def inspector(self) -> Path:
        """The program of the MCP Inspector."""
        return self.npm / "node_modules" / ".bin" / "mcp-inspector"


def missing() -> str | None:
    """Say which program of the machine's is missing, if any."""
    for name, use in (("npm", "half of the clients are npm packages (install Node.js)"), ("curl", "it is a client")):
        if shutil.which(name) is None:
            return f"{name} was not found: {use}"
    return None


def install() -> Installed:
    """Install what is missing.

    Raises:
        NotInstalledError: Something cannot be installed here.
    """
    if (reason := missing()) is not None:
        raise NotInstalledError(reason)
    npm = kept("npm", [HERE / "package.json", HERE / "package-lock.json"], _install_npm)
    for driver in (HERE / "drivers").glob("*.mjs"):
        shutil.copy(driver, npm)
    sdk1 = kept(f"sdk1-{sys.version_info[0]}.{sys.version_info[1]}", [HERE / "sdk1.txt"], _install_sdk1)
    return Installed(find_node(), npm, sdk1 / "bin" / "python")


def kept(name: str, pins: Sequence[Path], fill: Callable[[Path], None]) -> Path:
    """Give the folder for these pins, filled where it is not yet."""
    digest = sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()[:12]
    return filled(cache() / f"{name}-{digest}", fill)


def cache() -> Path:
    """Give the folder that has all clients."""
    return Path(os.environ.get("TESTS_CACHE") or ROOT / ".cache").absolute() / "clients"


def _install_npm(place: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, place)
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], place)


def _install_sdk1(place: Path) -> None:
    venv.create(place, with_pip=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-r", str(HERE / "sdk1.txt")], place)


def find_node() -> str:
    """Give a Node that is new enough: the machine's, else one from npm.

    Raises:
        NotInstalledError: It cannot be installed here.
    """
    here = shutil.which("node")
    if here is not None and _version_of(here) >= NODE:
        return here
    place = filled(cache() / NODE_PACKAGE.replace("@", "-"), _install_node)
    program = place / "node_modules" / "node" / "bin" / "node"
    if not program.exists():
        raise NotInstalledError(f"npm installed {NODE_PACKAGE} without the program: are install scripts switched off?")
    return str(program)


def _install_node(place: Path) -> None:
    # Its install script is what brings the program.
    _run(["npm", "install", "--prefix", str(place), "--no-audit", "--no-fund", "--loglevel=error", NODE_PACKAGE], place)


def _version_of(node: str) -> tuple[int, int]:
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor, _ = answer.removeprefix("v").split(".", 2)
    return int(major), int(minor)


def _run(command: Sequence[str], place: Path) -> None:
    done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise NotInstalledError(f"{' '.join(command)} failed:\n{done.stdout}")
