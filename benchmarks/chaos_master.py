"""Kills workers at random moments of starts, reloads and drains, and checks that the wanted number serves again.

    python benchmarks/chaos_master.py [--kills 50] [--workers 3] [--seed 1]

Each round disturbs a real `mcp-hybrid serve`: by nothing (its workers serve), a reload (SIGHUP), a drain of one worker
(SIGTERM to it), or a start of the whole server. A random moment later it kills one of the processes that are workers
just then, whether it starts, serves or drains. Then as many workers as wanted must answer a call, and no process of the
server may be left beside them. The exit code is 1 if any of this is not so. Linux only: workers are found in /proc.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import trio
import watching  # first: it knows where the harness is

from harness.process import ServerProcess, serve

PATIENCE: Final = 120.0
"""Seconds until the wanted number must serve again; delays after workers that died early are part of it."""
MOMENT: Final = 3.0
"""Seconds after the disturbance within which the worker is killed: longer than a start takes."""
ENVIRON: Final = {"MCP_HYBRID_LOG__LEVEL": "warning"}


def workers(server: ServerProcess) -> set[int]:
    """Give the processes that the master has started and that have not ended."""
    found = set()
    for each in Path(f"/proc/{server.pid}/task").glob("*/children"):  # a child belongs to the thread that started it
        with suppress(OSError):
            found |= {int(pid) for pid in each.read_text().split()}
    return found


def nothing(_server: ServerProcess, _rng: Random) -> None:
    """Leave the workers serving."""


def reload(server: ServerProcess, _rng: Random) -> None:
    """Have the master start workers beside those that serve."""
    os.kill(server.pid, signal.SIGHUP)


def drain(server: ServerProcess, rng: Random) -> None:
    """Have one worker drain and end."""
    with suppress(ProcessLookupError):
        os.kill(rng.choice(sorted(workers(server))), signal.SIGTERM)


def start(server: ServerProcess, _rng: Random) -> None:
    """Start the whole server again, without waiting until it serves."""
    server.stop()
    server._launch()  # noqa: SLF001 - `start` would wait


KINDS: Final[dict[str, Callable[[ServerProcess, Random], None]]] = {
    "while they serve": nothing,
    "during a reload": reload,
    "during a drain": drain,
    "during a start": start,
}


def kill_one(server: ServerProcess, rng: Random) -> bool:
    """Kill a worker, whatever it is doing. Returns whether there was one."""
    living = sorted(workers(server))
    if not living:
        return False
    with suppress(ProcessLookupError):
        os.kill(rng.choice(living), signal.SIGKILL)
        return True
    return False


async def serves_again(server: ServerProcess, wanted: int) -> bool:
    """Wait until so many different workers have answered, and there are no others."""
    with trio.move_on_after(PATIENCE):
        while True:
            living = workers(server)
            with suppress(OSError, AssertionError, RuntimeError, trio.TooSlowError, trio.BrokenResourceError, EOFError):
                answered = set(await watching.look_at_all(server.port, wanted)) if len(living) == wanted else set()
                if len(answered) == wanted and answered == living == workers(server):
                    return True
            await trio.sleep(0.2)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50, help="how many workers are killed (default 50)")
    parser.add_argument("--workers", type=int, default=3, help="worker processes (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="what the moments are made from (default 1)")
    options = parser.parse_args()
    rng = Random(options.seed)
    killed: Counter[str] = Counter()
    slowest, wrong = 0.0, []
    with serve(watching.TARGET, "--workers", str(options.workers), env=ENVIRON) as server:
        while killed.total() < options.kills:
            kind = list(KINDS)[killed.total() % len(KINDS)]
            KINDS[kind](server, rng)
            time.sleep(rng.uniform(0, MOMENT))
            while not kill_one(server, rng):
                time.sleep(0.05)
            killed[kind] += 1
            print(f"{killed.total():>4} {kind}", flush=True)
            began = time.monotonic()
            if not trio.run(serves_again, server, options.workers):
                wrong.append(f"kill {killed.total()}, {kind}: {len(workers(server))} workers after {PATIENCE:g} s")
                break
            slowest = max(slowest, time.monotonic() - began)
    for kind, times in killed.items():
        print(f"{times:>4} killed {kind}")
    print(f"{options.workers} workers served again after each; the slowest took {slowest:.1f} s" if not wrong else "")
    for each in wrong:
        print(each)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
