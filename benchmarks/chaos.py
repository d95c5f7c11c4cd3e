"""Keeps a server under a steady load of clients that behave, and every second has something go wrong beside them.

    python benchmarks/chaos.py [--minutes 5] [--workers 1] [--clients 4] [--seed 1] [--stall-redis]

The load: calls without a session, in a session, followed by progress, at 2026-07-28, over HTTP/2, answers to questions,
and standalone streams; every answer is checked. The faults: connections that are left or reset in the middle of a
request, a call or a stream, half a body and then nothing, clients that read nothing, garbage on HTTP/1 and HTTP/2. With
several workers, which share a Redis, now and then one of them is killed as well.

No client may see an error but those whose connection was to a worker when it was killed: each asks on every connection
which worker it is. Their sessions must go on. After the load the server must hold what it held before. The exit code
is 1 if any of this is not so. Linux only: descriptors and memory are read from /proc.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import Random

import one_owner
import trio
import watching  # first: it knows where the harness is
from disorder.callers import KINDS, Line, Load
from disorder.faults import FAULTS, KILL, Faults

from harness.process import ServerProcess, serve
from harness.raw import RawClient
from harness.redis import RedisServer, redis_server

ENVIRON = {
    **one_owner.ENVIRON,
    "MCP_HYBRID_LOG__LEVEL": "warning",
    "MCP_HYBRID_REQUEST_TIMEOUT": "60",
    "MCP_HYBRID_STREAM_AFTER": "0.2",
    "MCP_HYBRID_SESSIONS__IDLE_TIMEOUT": "3",
}
FAULT_EVERY = 1.0
"""Seconds from one fault to the next."""
KILL_EVERY = 12
"""With several workers every twelfth fault is a kill: one that dies within ten seconds of its start is taken for one
that cannot start, and the next is made to wait."""
STALL = 0.3
"""Seconds for which a Redis is stalled: less than what makes calls fail."""
SETTLING = 90.0
"""Seconds the server has to let go of what the load left behind."""
GROWTH = 32 * 1024
"""KiB by which a process may have grown, caches and free lists included."""
DIED = '"event":"a worker died'
"""What the log says of each worker that was killed."""
OTHERS = 8
"""Sessions that clients which do not behave know of."""


async def run(server: ServerProcess, load: Load, options: argparse.Namespace, redis: RedisServer | None) -> list[str]:
    """Run the load with its faults; give everything that went wrong."""
    await call_once(load)  # what is imported with the first call of a kind is nobody's leak
    before = await watching.look_at_all(load.port, options.workers)
    caused: Counter[str] = Counter()
    rng = Random(options.seed)
    sessions = [await open_session(load.port) for _ in range(OTHERS)]
    async with trio.open_nursery() as faulty:
        faults = Faults(load, rng, faulty, sessions)
        async with trio.open_nursery() as nursery:
            for number in range(options.clients):
                for kind in KINDS:
                    nursery.start_soon(kind(load, number).run)
            for moment in range(1, int(options.minutes * 60 / FAULT_EVERY) + 1):
                await trio.sleep(FAULT_EVERY)
                name = KILL if load.several and moment % KILL_EVERY == 0 else rng.choice(list(FAULTS))
                caused[name] += 1
                await faults.cause(name)
                if redis is not None and moment % 7 == 0:
                    caused["Redis is stalled"] += 1
                    redis.stall()
                    await trio.sleep(STALL)
                    redis.resume()
            load.over = True
        faulty.cancel_scope.cancel()
    after = await watching.settled(load.port, before, SETTLING)
    table("faults", caused)
    return report(server, load, before, after)


async def open_session(port: int) -> str:
    async with RawClient.open(port) as client:
        return await Line(client).open_session()


async def call_once(load: Load) -> None:
    """Have each kind of client call once."""
    warm = Load(load.port, several=False)
    async with trio.open_nursery() as nursery:
        for kind in KINDS:
            nursery.start_soon(kind(warm, 0).run)
        while set(warm.done) != {kind.kind for kind in KINDS}:
            await warm.changed.wait()
        warm.over = True


def report(
    server: ServerProcess, load: Load, before: Mapping[int, watching.Held], after: Mapping[int, watching.Held]
) -> list[str]:
    """Print what was counted; give everything that went wrong."""
    print(f"\n{'client':<14}{'calls':>8}{'lost by kills':>15}{'slowest':>10}")
    for kind in (each.kind for each in KINDS):
        print(f"{kind:<14}{load.done[kind]:>8}{load.lost[kind]:>15}{load.slowest.get(kind, 0):>9.2f}s")
    print()
    for what, processes in (("before", before), ("after", after)):
        for pid, held in processes.items():
            print(f"{what:<7} {pid:>8}: {held}")
    wrong = list(load.wrong)
    wrong += [f"{kind.kind}: no call was answered" for kind in KINDS if not load.done[kind.kind]]
    wrong += left_over(before, after)
    lines = server.log.splitlines()
    wrong += [f"the server logged: {line[:1500]}" for line in lines if is_wrong(line)]
    if (died := sum(DIED in line for line in lines)) != len(load.killed):
        wrong.append(f"{died} workers died, {len(load.killed)} were killed")
    if len(after) < len(before):
        wrong.append(f"{len(after)} of {len(before)} workers answer in the end")
    return wrong


def left_over(before: Mapping[int, watching.Held], after: Mapping[int, watching.Held]) -> Iterator[str]:
    """Say what workers hold that none held before."""
    for what, more in (("descriptors", 0), ("tasks", 0), ("sessions", 0), ("rss", GROWTH)):
        most = max(getattr(held, what) for held in before.values()) + more
        for pid, held in after.items():
            if getattr(held, what) > most:
                yield f"process {pid} holds {getattr(held, what)} {what} in the end, before none had more than {most}"


def is_wrong(line: str) -> bool:
    """Whether a line of the log tells of a failure; what garbage does to its own connection is none."""
    if DIED in line:
        return False
    return '"level":"error"' in line or '"level":"critical"' in line or not line.startswith("{")


def table(title: str, counts: Mapping[str, int]) -> None:
    print(title)
    for name, count in sorted(counts.items(), key=lambda each: -each[1]):
        print(f"  {count:>6}  {name}")


@contextmanager
def serving(workers: int) -> Iterator[tuple[ServerProcess, RedisServer | None]]:
    """Run one process with its own memory, or several that share a Redis."""
    if workers == 1:
        with serve(watching.TARGET, env=ENVIRON) as server:
            yield server, None
        return
    with redis_server() as redis:
        environ = {**ENVIRON, "MCP_HYBRID_BACKPLANE": redis.url}
        with serve(watching.TARGET, "--workers", str(workers), env=environ) as server:
            yield server, redis


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=5, help="how long (default 5)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes; several share a Redis (default 1)")
    parser.add_argument("--clients", type=int, default=4, help="clients of each kind (default 4)")
    parser.add_argument("--seed", type=int, default=1, help="what the order of faults is made from (default 1)")
    parser.add_argument("--stall-redis", action="store_true", help="have Redis stall for moments, too")
    options = parser.parse_args()

    started = time.monotonic()
    with serving(options.workers) as (server, redis):
        load = Load(server.port, several=options.workers > 1)
        wrong = trio.run(run, server, load, options, redis if options.stall_redis else None)
    calls = sum(load.done.values())
    print(f"\n{calls} calls in {time.monotonic() - started:.0f} s, {sum(load.lost.values())} lost by kills")
    print(f"{len(wrong)} errors of the server's making")
    for each in wrong[:40]:
        print(f"  {each}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
