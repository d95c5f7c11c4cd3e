"""Settings for a server whose only client is a load generator: one owner, which is given all that there is.

The limits are kept, and cost what they cost; only their figures are out of reach.
"""

from __future__ import annotations

from typing import Any, Final

LIMITS: Final[dict[str, Any]] = {
    "requests": 1_000_000,
    "requests_per_owner": 1_000_000,
    "streams_per_owner": 1_000_000,
    "rate_per_owner": "100000000/s",
    "bodies": "64GiB",
    "bodies_per_owner": "64GiB",
}

ENVIRON: Final = {f"MCP_HYBRID_LIMITS__{name.upper()}": str(value) for name, value in LIMITS.items()}
