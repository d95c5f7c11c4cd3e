"""The application of `plain`, on a Hypercorn that is hardened and nothing else."""

from __future__ import annotations

from plain import app

from mcp_hybrid.server.worker import harden

__all__ = ["app"]

harden()
