"""The mailbox: order, the fast lane, and that closing loses nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from handoff_actors.actors.mailbox import (
    IDLE,
    SIGNAL,
    Mailbox,
    MailboxClosedError,
    MailboxTakenError,
)


class Reader:
    """A host that is drained by hand, and counts how often it was scheduled."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.message: Any = None
        self.scheduled = 0
        self.read: list[Any] = []

    def schedule(self, follow: bool = False) -> None:
        self.scheduled += 1

    def drain(self) -> None:
        while (message := self.mailbox.next(self)) is not IDLE:
            self.read.append(message)

    def attach(self) -> Reader:
        self.mailbox.attach(self)
        self.mailbox.begin(self)
        return self


def test_first_in_first_out_and_one_schedule_for_many() -> None:
    mailbox = Mailbox()
    reader = Reader(mailbox).attach()
    for number in range(5):
        mailbox.put(number)
    assert reader.scheduled == 1
    reader.drain()
    assert reader.read == [0, 1, 2, 3, 4]
    mailbox.put(5)
    assert reader.scheduled == 2


def test_system_messages_overtake() -> None:
    mailbox = Mailbox()
    reader = Reader(mailbox).attach()
    mailbox.put("late")
    mailbox.signal_elsewhere()
    assert mailbox.put_urgent("now")
    reader.drain()
    assert reader.read == ["now", SIGNAL, "late"]


def test_an_urgent_message_is_for_the_present_host_only() -> None:
    mailbox = Mailbox()
    assert not mailbox.put_urgent("nobody reads")
    first = Reader(mailbox).attach()
    assert not mailbox.put_urgent("other", Reader(mailbox))
    assert mailbox.put_urgent("mine", first)
    mailbox.detach(first)
    second = Reader(mailbox).attach()
    second.drain()
    assert second.read == []


def test_messages_wait_for_the_next_host() -> None:
    mailbox = Mailbox()
    mailbox.put("a")
    first = Reader(mailbox).attach()
    assert first.scheduled == 1
    assert mailbox.detach(first)
    mailbox.put("b")
    first.drain()
    assert first.read == []
    second = Reader(mailbox).attach()
    second.drain()
    assert second.read == ["a", "b"]


def test_only_the_present_host_can_let_go() -> None:
    mailbox = Mailbox()
    first = Reader(mailbox).attach()
    assert not mailbox.detach(Reader(mailbox))
    assert mailbox.detach(first)
    assert not mailbox.detach(first)


def test_a_second_reader_is_refused_and_the_first_reads_on() -> None:
    mailbox = Mailbox()
    first = Reader(mailbox).attach()
    with pytest.raises(MailboxTakenError):
        mailbox.attach(Reader(mailbox))
    mailbox.put("x")
    first.drain()
    assert first.read == ["x"]


def test_closed_refuses_with_the_reason_and_hands_back_what_was_left() -> None:
    mailbox = Mailbox()
    reader = Reader(mailbox).attach()
    mailbox.put("a")
    mailbox.put("b")
    assert mailbox.next(reader) == "a"
    assert mailbox.close("why") == ["b"]
    assert mailbox.close("again") == []
    with pytest.raises(MailboxClosedError) as caught:
        mailbox.put("c")
    assert caught.value.reason == "why"
    assert not mailbox.put_back("a")
    assert mailbox.closed
    mailbox.detach(reader)
    with pytest.raises(MailboxClosedError):
        mailbox.attach(Reader(mailbox))


def test_put_back_comes_first_and_wakes_a_host_that_is_there_already() -> None:
    # An abandoned incarnation may put its message back after the next one has begun to read.
    mailbox = Mailbox()
    reader = Reader(mailbox).attach()
    assert reader.scheduled == 0
    assert mailbox.put_back("second life")
    assert reader.scheduled == 1
    mailbox.put_back("first")
    reader.drain()
    assert reader.read == ["first", "second life"]


def test_the_message_in_hand_is_known_before_the_mailbox_can_be_taken_away() -> None:
    mailbox = Mailbox()
    reader = Reader(mailbox).attach()
    mailbox.put("in hand")
    mailbox.next(reader)
    assert reader.message == "in hand"


def test_signals_while_one_drains_are_seen_by_it() -> None:
    mailbox = Mailbox()
    reader = Reader(mailbox).attach()
    mailbox.signal()
    assert reader.read == [SIGNAL]
    mailbox.put("x")
    mailbox.signal()
    assert reader.read == [SIGNAL]
    reader.drain()
    assert reader.read == [SIGNAL, SIGNAL, "x"]


def test_racing_puts_against_close_lose_nothing() -> None:
    for _ in range(50):
        mailbox = Mailbox()
        accepted: list[list[int]] = [[] for _ in range(4)]
        refused: list[list[int]] = [[] for _ in range(4)]
        go = threading.Barrier(5)

        def send(
            who: int,
            mailbox: Mailbox = mailbox,
            accepted: list[list[int]] = accepted,
            refused: list[list[int]] = refused,
            go: threading.Barrier = go,
        ) -> None:
            go.wait()
            for number in range(who * 1000, who * 1000 + 200):
                try:
                    mailbox.put(number)
                except MailboxClosedError:
                    refused[who].append(number)
                else:
                    accepted[who].append(number)

        threads = [threading.Thread(target=send, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        go.wait()
        left = mailbox.close("end")
        for thread in threads:
            thread.join()
        assert sorted(left) == sorted(number for numbers in accepted for number in numbers)
        assert len(left) + sum(map(len, refused)) == 800
