"""Where the worker processes of one server add up their metrics: a directory of files, one set for each worker.

prometheus-client decides when it is imported whether it keeps its figures there, so the variable that names the
directory is set before: by the parent of the workers, or by whoever starts a server that has workers of its own
(`hypercorn -w 4`). Nothing here imports the library ahead of that.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"

_OF_A_LIVE_WORKER: Final = re.compile(r"gauge_live[a-z]*_(\d+)\.db")


@contextmanager
def prepare_multiprocess(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Have the processes that are started inside this block add up their metrics. For the parent of workers.

    A directory that `environ` names already is used as it is, and is not removed.
    """
    if environ.get(VARIABLE):
        yield
        return
    folder = tempfile.mkdtemp(prefix="mcp-hybrid-metrics-")
    environ[VARIABLE] = folder
    try:
        yield
    finally:
        del environ[VARIABLE]
        shutil.rmtree(folder, ignore_errors=True)


def forget_worker(pid: int) -> None:
    """Stop showing what a worker that ended held (sessions, streams, calls). What it counted still counts.

    May be called by the parent when a worker ends; the metrics page does it for all that are gone before it adds up.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        for file in Path(folder).glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)


def forget_the_gone(folder: str) -> None:
    """Forget all workers whose process is gone. They must have been on this machine, in this process namespace."""
    pids = {int(found[1]) for file in Path(folder).iterdir() if (found := _OF_A_LIVE_WORKER.fullmatch(file.name))}
    for pid in pids:
        if not _runs(pid):
            forget_worker(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
