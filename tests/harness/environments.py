"""Virtual environments that take what is installed here instead of downloading it.

    python environments.py -m venv FOLDER      in place of `python -m venv FOLDER`

With `WITHOUT_DOWNLOADS`, pip builds and installs in one what it is told to, without what that depends on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

WITHOUT_DOWNLOADS: Final[Mapping[str, str]] = (
    {}
    if os.environ.get("TESTS_TIER") == "all"
    else {
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_IGNORE_INSTALLED": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # which means: no isolation
    }
)
"""Variables for pip. The tier `all` has none: there it downloads all that it needs."""


def make_environment(place: Path) -> Path:
    """Make a virtual environment with the packages of this one, and give the folder of those that are its own."""
    if not WITHOUT_DOWNLOADS:
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        return next(place.glob("lib/python*/site-packages"))
    venv.create(place, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "these.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = place / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec {place / "bin" / "python"} -m pip "$@"\n', encoding="utf-8")
    pip.chmod(0o755)
    return packages


def main(arguments: Sequence[str]) -> None:
    """Run `python` with these arguments, or make the virtual environment that they ask for."""
    if list(arguments[:2]) == ["-m", "venv"]:
        make_environment(Path(arguments[2]))
    else:
        os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
