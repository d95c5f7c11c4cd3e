"""The runtimes that a program can be given, as an operator writes them."""

from __future__ import annotations

from enum import StrEnum


class RuntimeName(StrEnum):
    """Which event loop the served program runs on."""

    AUTO = "auto"
    """What the program needs, as far as can be told from its code."""
    TRIO = "trio"
    ASYNCIO = "asyncio"
