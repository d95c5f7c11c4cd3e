"""The books of admission, and the callers whose rate is remembered, by themselves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from harness.properties import examples
from mcp_hybrid.errors import Fault
from mcp_hybrid.security import rates
from mcp_hybrid.security.limits import READING_AT_LEAST, Admission, Bounds, Ticket
from mcp_hybrid.security.owner import ANONYMOUS, Owner
from mcp_hybrid.security.rates import Rates

OWNERS = [Owner("i", name, "c") for name in ("a", "b", "c")]
BOUNDS = Bounds(requests=4, requests_per_owner=2, streams_per_owner=2, bodies=200, bodies_per_owner=100)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Books(RuleBasedStateMachine):
    """Requests of three owners in any order; the model is the tickets that are out."""

    tickets = Bundle[Ticket]("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(BOUNDS, Clock())
        self.inside: list[Ticket] = []

    @rule(target=tickets, owner=st.sampled_from(OWNERS), has_body=st.booleans(), in_session=st.booleans())
    def arrive(self, owner: Owner, *, has_body: bool, in_session: bool) -> Ticket:
        ticket = self.admission.ticket(owner, None)
        reading = sum(each.reading for each in self.inside)
        fault = self.admission.arrive(ticket, has_body=has_body, in_session=in_session)
        self.check(fault, ticket)
        if not has_body or (in_session and reading < READING_AT_LEAST):
            assert fault is None, "there is room to read what may be an answer"
        self.inside.append(ticket)
        return ticket

    @rule(ticket=tickets, calls=st.integers(1, 3))
    def start(self, ticket: Ticket, calls: int) -> None:
        before = self.running(ticket.caller) - ticket.running
        fault = self.admission.start(ticket, calls, 1)
        everybody = sum(each.running for each in self.inside if each is not ticket)
        assert (fault is None) == (before + calls <= 2 and everybody + calls <= 4)
        self.check(fault, ticket)

    @rule(ticket=tickets, key=st.sampled_from(["s", "t", "u", None]))
    def stream(self, ticket: Ticket, key: str | None) -> None:
        held = {each.stream for each in self.inside if each.caller == ticket.caller and each is not ticket} - {None}
        fault = self.admission.stream(ticket, key, None)
        assert (fault is None) == (key in held or len(held) < 2)
        self.check(fault, ticket)

    @rule(ticket=tickets)
    def pass_by(self, ticket: Ticket) -> None:
        self.admission.pass_by(ticket)
        assert (ticket.reading, ticket.running, ticket.stream) == (0, 0, None)

    @rule(ticket=consumes(tickets), times=st.integers(1, 2))
    def leave(self, ticket: Ticket, times: int) -> None:
        for _ in range(times):
            self.admission.leave(ticket)
        self.inside.remove(ticket)

    def running(self, caller: object) -> int:
        return sum(ticket.running for ticket in self.inside if ticket.caller == caller)

    def check(self, fault: Fault | None, ticket: Ticket) -> None:
        if fault is not None:
            assert (ticket.reading, ticket.running, ticket.stream) == (0, 0, None), "a refused request takes nothing"

    @rule(ticket=tickets, size=st.integers(0, 150))
    def weigh(self, ticket: Ticket, size: int) -> None:
        others = [each for each in self.inside if each is not ticket]
        mine = sum(each.weight for each in others if each.caller == ticket.caller)
        everybody = sum(each.weight for each in others)
        before = ticket.weight
        fault = self.admission.weigh(ticket, size)
        fits = (not mine or mine + size <= 100) and (not everybody or everybody + size <= 200)
        assert (fault is None) == fits
        assert ticket.weight == (size if fits else before)

    @invariant()
    def the_books_are_those_of_the_tickets(self) -> None:
        books = self.admission
        assert books._all.running == sum(ticket.running for ticket in self.inside) <= 4
        assert books._all.reading == sum(ticket.reading for ticket in self.inside)
        assert books._all.weight == sum(ticket.weight for ticket in self.inside)
        inside = Counter(ticket.caller for ticket in self.inside if ticket.held is not None)
        assert {caller: kept.inside for caller, kept in books._held.items()} == inside, "nobody else is remembered"
        for caller, kept in books._held.items():
            mine = [ticket for ticket in self.inside if ticket.caller == caller]
            assert kept.running == self.running(caller) <= 2
            assert kept.reading == sum(ticket.reading for ticket in mine)
            assert kept.weight == sum(ticket.weight for ticket in mine)
            assert kept.streams == Counter(ticket.stream for ticket in mine if ticket.stream is not None)
            assert len(kept.streams) <= 2
        assert books.idle == (not inside)


Books.TestCase.settings = examples(50, stateful_step_count=30)
test_the_books_hold_what_the_tickets_hold = Books.TestCase


def test_so_many_bodies_and_no_more_are_read_at_a_time_for_one_owner() -> None:
    admission = Admission(Bounds(requests_per_owner=1), Clock())
    faults = [
        admission.arrive(admission.ticket(OWNERS[0], None), has_body=True, in_session=True)
        for _ in range(READING_AT_LEAST + 1)
    ]
    assert [fault is None for fault in faults] == [True] * READING_AT_LEAST + [False]


# Who a caller is


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2", True),
        ("unix:", "unix:", True),
        (None, None, True),
    ],
)
def test_where_nobody_is_authenticated_a_caller_is_an_address(one: str | None, other: str | None, same: bool) -> None:
    callers = [Admission.ticket(ANONYMOUS, (each, 1) if each is not None else None).caller for each in (one, other)]
    assert (callers[0] == callers[1]) is same


def test_an_owner_is_the_same_caller_from_everywhere() -> None:
    callers = {Admission.ticket(OWNERS[0], (address, 1)).caller for address in ("192.0.2.1", "2001:db8::1")}
    assert callers == {OWNERS[0]}


# Rates


@given(
    count=st.integers(1, 50),
    seconds=st.sampled_from([1, 60, 3600]),
    pauses=st.lists(st.integers(0, 100_000), max_size=60),
)
def test_the_wait_that_is_told_is_true_and_no_more_pass_than_may(count: int, seconds: int, pauses: list[int]) -> None:
    clock, milliseconds = Clock(), 0
    limit = Rates(count, seconds, clock)
    passed: list[int] = []
    for pause in pauses:
        milliseconds += pause
        clock.now = milliseconds / 1000
        wait = limit.take("a", 1)
        assert wait is not None
        if wait > 0:
            milliseconds += wait * 1000
            clock.now = milliseconds / 1000
            assert limit.take("a", 1) == 0, "after the time that was told there is room"
        passed.append(milliseconds)
    for at in passed:
        in_window = sum(at <= other < at + seconds * 1000 for other in passed)
        assert in_window <= 2 * count, "a full bucket, and what refills it meanwhile"


def test_callers_that_are_idle_are_forgotten_and_none_is_remembered_for_ever() -> None:
    clock = Clock()
    limit = Rates(1, 1, clock)
    for number in range(100):
        limit.take(number, 1)
    clock.now = 2
    for number in range(100, 160):
        limit.take(number, 1)
    assert len(limit) == 60
    assert limit.take(159, 1) == 1, "who has just asked is remembered"


def test_a_flood_of_callers_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "CALLERS_REMEMBERED", 50)
    limit = Rates(1, 3600, Clock())
    limit.take("regular", 1)
    for number in range(1000):
        limit.take(number, 1)
        assert limit.take("regular", 1) != 0, "one that keeps asking is not pushed out"
    assert len(limit) <= 50
