"""What the person sees on standard error while a call runs: a bar on a terminal, lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn


class Screen:
    """Shows one call's progress, and makes room for questions. Used as a context manager around the call."""

    def __init__(self, title: str) -> None:
        self.seen = False
        """Whether any progress came."""
        self.interactive = sys.stderr.isatty()
        self.console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(show_speed=False),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.interactive,
        )
        self._waiting = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.interactive,
        )
        self._title = escape(printable(title))
        self._shown = self._waiting
        self._task = self._waiting.add_task(self._title)

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.stop()

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Show one value, as the SDK's progress callback."""
        text = printable(message or "")
        if not self.interactive:
            of = f"/{total:g}" if total is not None else ""
            say(f"progress {progress:g}{of} {text}".rstrip())
            self.seen = True
            return
        if not self.seen:
            self.seen = True
            self._show_bar(total)
        description = f"{self._title} {escape(text)}".rstrip()
        self._progress.update(self._task, completed=progress, total=total, description=description)

    @contextmanager
    def paused(self) -> Iterator[Console]:
        """Take the moving line away while a question is asked."""
        self._shown.stop()
        try:
            yield self.console
        finally:
            self._shown.start()

    def _show_bar(self, total: float | None) -> None:
        """Replace the spinner by a bar; not both, as the spinner leaves no line behind and the bar does."""
        self._waiting.stop()
        self._shown = self._progress
        self._task = self._progress.add_task(self._title, total=total)
        self._progress.start()


def say(line: str) -> None:
    """Write one line for the person to standard error, at once."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # the one place that does


def printable(text: str) -> str:
    """Replace control characters, with which a server could rewrite the screen, by a visible mark."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
