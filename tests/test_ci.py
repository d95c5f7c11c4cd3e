"""What `.ci/run` and `make test` run. With stand-ins for all programs: nothing is installed or tested here."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest

from harness.tools import need

ROOT = Path(__file__).parent.parent
CHECK_WHEEL = ROOT / "tools" / "check_wheel.py"

PROGRAMS = (
    "python3", "make", "git", "curl", "redis-server", "npm", "node", "nginx", "caddy", "wrk", "chromium",
    "systemd-analyze", "apt-get", "sudo",
)  # fmt: skip
BASH_NEEDS = ("bash", "env", "dirname", "basename", "id", "head", "cut", "uname")

STAND_IN = """\
#!/bin/sh
echo "{name} $*" >> "{calls}"
echo "CI=$CI" >> "{calls}"
exit {code}
"""


class Machine:
    """A search path with stand-ins that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        for name in BASH_NEEDS:
            (folder / name).symlink_to(need(name))
        for name in PROGRAMS:
            self.install(name)

    def install(self, name: str, code: int = 0) -> None:
        text = STAND_IN.format(name=name, calls=self.calls, code=code)
        (self.folder / name).write_text(text, encoding="utf-8")
        (self.folder / name).chmod(0o755)

    def run(self, **env: str) -> Sequence[str]:
        """Run the script; give what it called."""
        done = subprocess.run(
            [ROOT / ".ci" / "run"],
            env={"PATH": str(self.folder), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return self.calls.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.process
def test_ci_runs_make_test_and_lets_nothing_be_skipped(machine: Machine) -> None:
    assert machine.run()[-2:] == ["make test PYTHON=python3", "CI=true"]


@pytest.mark.process
def test_ci_prefers_the_oldest_python_that_is_supported(machine: Machine) -> None:
    machine.install("python3.11")
    assert "make test PYTHON=python3.11" in machine.run()


@pytest.mark.process
def test_ci_is_not_taken_in_by_a_python_that_does_not_run(machine: Machine) -> None:
    machine.install("python3.11", code=127)
    assert "make test PYTHON=python3" in machine.run()


@pytest.mark.process
def test_ci_takes_the_python_it_is_told_to(machine: Machine) -> None:
    for name in ("python3.11", "python3.13"):
        machine.install(name)
    assert "make test PYTHON=python3.13" in machine.run(PYTHON="python3.13")


@pytest.mark.process
def test_ci_installs_what_is_missing(machine: Machine) -> None:
    for name in ("git", "redis-server"):
        (machine.folder / name).unlink()
    (installed,) = [line for line in machine.run() if "apt-get install" in line]
    assert installed.split()[-2:] == ["git", "redis-server"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("target", "script"),
    [
        ("check", "tools/run_tests.py check"),
        ("test", "tools/run_tests.py test"),
        ("test-all", "tools/run_tests.py all"),
        ("test-times", "tools/test_times.py"),
    ],
)
def test_make_has_a_target_for_each_tier(target: str, script: str) -> None:
    make = need("make")
    done = subprocess.run([make, "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert script in done.stdout


@pytest.mark.parametrize(("names", "told"), [(["mcp_hybrid/py.typed"], False), (["mcp_hybrid/__init__.py"], True)])
def test_a_wheel_without_its_types_is_told(names: list[str], told: bool, tmp_path: Path) -> None:
    with ZipFile(tmp_path / "it.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, "")
    look = runpy.run_path(str(CHECK_WHEEL))["look_into"]
    if told:
        with pytest.raises(SystemExit, match=r"py\.typed"):
            look(tmp_path / "it.whl")
    else:
        look(tmp_path / "it.whl")
