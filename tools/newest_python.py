"""Runs the tests on the newest other Python this machine has: one that is not the version running this script.

All but those of other programs (the mark `once`), which were run already. It gets an environment of its own, .venv-3.13
for instance, which is kept and set up again when pyproject.toml changes.
Without another Python of 3.11 or newer this says so, and succeeds.
"""

# a script, not a package; it runs programs that it names itself

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
PROBE = "import ensurepip, sys, venv; print(*sys.version_info[:2], sys.version_info.releaselevel)"

Version = tuple[int, int]


def main() -> int:
    """Find, set up, test; the exit code is that of the tests."""
    others = {version: python for version, python in found() if version != sys.version_info[:2]}
    if not others:
        say(f"no Python of 3.11 or newer beside {sys.version.split()[0]}: the tests ran on that one only")
        return 0
    version = max(others)
    python = environment(others[version], version)
    say(f"the tests on Python {name(version)}")
    # What is marked so does not depend on the Python, and takes as long as all the rest.
    return subprocess.run([python, "-m", "pytest", "-q", "-m", "not once"], cwd=ROOT, check=False).returncode


def found() -> Iterator[tuple[Version, Path]]:
    """Give every usable Python on the search path and under pyenv, leaving out what does not run."""
    for python in candidates():
        if version := probe(python):
            yield version, python


def candidates() -> Iterator[Path]:
    """Give every file that is named like a Python 3."""
    for folder in map(Path, os.get_exec_path()):
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if re.fullmatch(r"python3(\.\d+)?", path.name))
    yield from sorted((Path.home() / ".pyenv" / "versions").glob("*/bin/python3"))


def probe(python: Path) -> Version | None:
    """Ask a Python for its version; `None` if it is too old, not a release, or cannot make environments."""
    try:
        answer = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor, level = answer.stdout.split()
    version = (int(major), int(minor))
    return version if version >= OLDEST and level == "final" else None


def environment(python: Path, version: Version) -> Path:
    """Make that Python's environment, or bring it up to date, and give its interpreter."""
    folder = ROOT / f".venv-{name(version)}"
    inside = folder / "bin" / "python"
    mark = folder / ".dev"
    wanted = sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if not (mark.exists() and mark.read_text() == wanted):
        say(f"setting up {folder.name}")
        subprocess.run([python, "-m", "venv", folder], check=True)
        quietly = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([inside, "-m", "pip", "install", *quietly, "-e", ".[dev]"], cwd=ROOT, check=True)
        mark.write_text(wanted)
    return inside


def name(version: Version) -> str:
    """Write a version as it is spoken of."""
    return ".".join(map(str, version))


def say(line: str) -> None:
    """Tell the person, before what the programs run here write."""
    print(line, flush=True)  # a script's output


if __name__ == "__main__":
    sys.exit(main())
