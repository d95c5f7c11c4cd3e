"""What the rooms count, and what they count it with. The lowest room: who shows the figures is no concern of theirs."""

from __future__ import annotations

from enum import StrEnum


class Count(StrEnum):
    """Something that happens, or (`_NOW`) something of which there is more or less at a time."""

    __hash__ = str.__hash__  # an enumeration's own is written in Python, and this is looked up for each request

    OFFERED = "offered"
    """A session id was sent to a client."""
    CLAIMED = "claimed"
    """The client confirmed its handshake with the id: the session came to life for the first time."""
    BROUGHT_BACK = "brought_back"
    """A session came to life from its id by any other message: after it hibernated, a restart, or on another worker."""
    HIBERNATED = "hibernated"
    DELETED = "deleted"
    """A session was ended by its client."""
    EXPIRED = "expired"
    """A session that was live had become too old. One that nobody uses any more expires without a trace."""
    ENDED_BY_OPERATOR = "ended_by_operator"
    PROGRESS_SENT = "progress_sent"
    PROGRESS_COALESCED = "progress_coalesced"
    """A value gave way to a newer one, because the client had not yet taken the one before."""
    PROGRESS_WITHHELD = "progress_withheld"
    """A request that asked for progress and, by the policy or by its own Accept, gets none."""
    MESSAGES_DROPPED = "messages_dropped"
    """A message for a GET stream was dropped, because its client read too slowly."""
    CONNECTIONS_TURNED_AWAY = "connections_turned_away"
    """A connection was closed at once, because there were too many."""
    CONNECTIONS_NOT_READ = "connections_not_read"
    """A connection, or a stream of HTTP/2, was closed because its client did not read what was written."""
    CALLS_ABANDONED = "calls_abandoned"
    """A call was answered (its time was over, or it was cancelled) while its function runs on."""
    CONNECTIONS_RESETTING = "connections_resetting"
    """A connection of HTTP/2 was closed because its client reset too many requests."""
    LOG_LINES_DROPPED = "log_lines_dropped"
    """A line of the log was dropped, as nobody read those before it."""

    SESSIONS_NOW = "sessions_now"
    CALLS_NOW = "calls_now"
    POST_STREAMS_NOW = "post_streams_now"
    GET_STREAMS_NOW = "get_streams_now"
    ABANDONED_THREADS_NOW = "abandoned_threads_now"


class Counts:
    """Adds up what happens in one application."""

    def __init__(self) -> None:
        self._so_far: dict[Count, int] = dict.fromkeys(Count, 0)

    def add(self, what: Count, amount: int = 1) -> None:
        """Note that `what` happened, or that there is `amount` more (or less) of it now. Must not raise or block."""
        self._so_far[what] += amount

    def __getitem__(self, what: Count) -> int:
        """Return how often it happened in this process, or how much of it there is."""
        return self._so_far[what]
