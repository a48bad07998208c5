"""The checker believes a server that makes no mistakes, and finds each mistake that is planted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.history.checker import Checker, Place, Seen, Shown, Stored
from tests.history.imagined import CHAT, Imagined
from tests.history.ledger import Known
from tests.history.view import Event, View

ALICE, BOB, CAROL = PEOPLE = ["alice", "bob", "carol"]


class Case:
    """A history with a bit of everything, and what all know of it."""

    def __init__(self) -> None:
        self.server = server = Imagined(PEOPLE)
        self.first, self.second = server.send(ALICE), server.send(BOB)
        server.react(self.first, BOB, "a")
        server.edit(self.second)
        server.remove(CAROL)
        self.third = server.send(ALICE)
        server.react(self.first, ALICE, "b")
        server.react(self.first, ALICE, "b")
        server.delete(self.second)
        server.add(CAROL)
        self.fourth = server.send(CAROL)
        server.read(BOB)
        server.read(ALICE)
        server.remove(BOB)
        self.fifth = server.send(ALICE)
        self.stored: Stored = server.stored()
        self.alice, self.bob, self.carol = (server.seen(user) for user in PEOPLE)
        heard = list(range(1, server.last + 1))
        self.follower = Seen(ALICE, "alice's follower", server.seen(ALICE).views, {}, {CHAT: heard})
        self.follower.marks = {place: [(1, 0), mark] for place, mark in server.marks.items()}

    def faults(self) -> set[str]:
        Checker(self.server.ledger, self.stored, [self.alice, self.bob, self.carol, self.follower]).check()
        return {fault.kind for fault in self.server.ledger.faults}

    def row(self, message: str) -> int:
        return next(number for number, row in enumerate(self.stored.messages) if row.id == message)

    def show(self, seen: Seen, **changes: object) -> None:
        seen.shown[CHAT] = seen.shown[CHAT]._replace(**changes)  # type: ignore[arg-type]

    def client_id(self, message: str) -> str:
        return str(self.stored.messages[self.row(message)].client_id)


def test_a_server_without_mistakes() -> None:
    assert Case().faults() == set()


def lost(case: Case) -> None:
    del case.stored.messages[case.row(case.third)]
    case.show(case.alice, messages=[one for one in case.alice.shown[CHAT].messages if one.id != case.third])


def doubled(case: Case) -> None:
    row = case.stored.messages[case.row(case.third)]
    case.stored.messages.append(row._replace(id="other", seq=case.server.last + 1))
    case.stored.last[CHAT] += 1


def seq_doubled(case: Case) -> None:
    case.stored.events.append(Place(CHAT, 4))


def gap(case: Case) -> None:
    case.stored.last[CHAT] += 1


def refused_and_there(case: Case) -> None:
    send = case.server.ledger.sends[case.client_id(case.third)]
    send.places.clear()
    send.refused = True


def never_sent(case: Case) -> None:
    del case.server.ledger.sends[case.client_id(case.third)]


def elsewhere(case: Case) -> None:
    case.server.ledger.sends[case.client_id(case.third)].places = {(case.third, 99)}


def two_answers(case: Case) -> None:
    case.server.ledger.sends[case.client_id(case.third)].places.add((case.third, 99))


def back_from_the_dead(case: Case) -> None:
    row = case.row(case.second)
    case.stored.messages[row] = case.stored.messages[row]._replace(live=True)


def never_deleted(case: Case) -> None:
    case.server.ledger.sends[case.client_id(case.second)].deleted = Known.NO


def not_as_edited(case: Case) -> None:
    case.server.ledger.sends[case.client_id(case.third)].payloads = {"another"}


def reaction_lost(case: Case) -> None:
    case.server.ledger.sends[case.client_id(case.third)].reactions[BOB, "c"] = Known.YES


def reaction_invented(case: Case) -> None:
    case.server.ledger.sends[case.client_id(case.first)].reactions.clear()


def event_missed(case: Case) -> None:
    del case.alice.views[CHAT].events[5]


def follower_missed(case: Case) -> None:
    del case.follower.views[CHAT].events[5]


def missed_by_all(case: Case) -> None:
    for seen in (case.alice, case.bob, case.carol, case.follower):
        seen.views[CHAT].events.pop(5, None)


def stored_differently(case: Case) -> None:
    places = case.stored.events
    number = next(number for number, place in enumerate(places) if place.kind == "reaction_added")
    places[number] = places[number]._replace(kind="reaction_removed")


def delivered_twice(case: Case) -> None:
    assert case.follower.heard is not None
    case.follower.heard[CHAT].insert(3, 3)


def delivered_late(case: Case) -> None:
    assert case.follower.heard is not None
    case.follower.heard[CHAT][3:5] = [5, 4]


def heard_after_removal(case: Case) -> None:
    case.bob.views[CHAT].add(Event.read(case.server.events[-1]))


def heard_between(case: Case) -> None:
    case.carol.views[CHAT].add(Event.read(case.server.events[6]))


def removal_not_delivered(case: Case) -> None:
    del case.bob.views[CHAT].events[max(case.bob.views[CHAT].events)]


def different_events(case: Case) -> None:
    events = case.alice.views[CHAT].events
    events[4] = events[4]._replace(about=case.second)


def receipt_as_an_event(case: Case) -> None:
    case.server.happen("receipt", user_id=BOB, delivered_seq=3, read_seq=2)
    case.stored = case.server.stored()
    case.alice.views[CHAT].add(Event.read(case.server.events[-1]))


def mark_missed(case: Case) -> None:
    assert case.follower.marks is not None
    case.follower.marks[CHAT, ALICE].pop()


def mark_going_back(case: Case) -> None:
    assert case.follower.marks is not None
    case.follower.marks[CHAT, BOB].append((2, 1))


def mark_of_a_channel(case: Case) -> None:
    case.server.ledger.kinds[CHAT] = "channel"


def reaction_repeated(case: Case) -> None:
    case.server.happen("reaction_added", message_id=case.first, user_id=BOB, emoji="a")
    case.stored = case.server.stored()
    case.alice.views[CHAT].add(Event.read(case.server.events[-1]))


def pin_repeated(case: Case) -> None:
    for _ in range(2):
        case.server.happen("message_pinned", message_id=case.first, user_id=BOB)
    case.stored = case.server.stored()
    for wire in case.server.events[-2:]:
        case.alice.views[CHAT].add(Event.read(wire))


def added_twice(case: Case) -> None:
    case.server.happen("participant_added", user_id=CAROL, role="member")
    case.stored = case.server.stored()
    case.alice.views[CHAT].add(Event.read(case.server.events[-1]))


def not_expired(case: Case) -> None:
    case.server.ledger.sends[case.client_id(case.third)].vanishes = True


def shown_to_the_removed(case: Case) -> None:
    case.bob.shown[CHAT] = Shown(case.server.last, 1, 3, [])


def not_shown_to_a_member(case: Case) -> None:
    case.carol.shown.clear()


def out_of_order(case: Case) -> None:
    case.show(case.alice, messages=case.alice.shown[CHAT].messages[::-1])


def last_seq_wrong(case: Case) -> None:
    case.show(case.alice, last_seq=3)


def unread_wrong(case: Case) -> None:
    case.show(case.carol, unread=case.carol.shown[CHAT].unread + 1)


def read_forgotten(case: Case) -> None:
    case.server.ledger.read[CHAT, ALICE] = 7


def unknown_chat(case: Case) -> None:
    case.alice.shown["another"] = case.alice.shown[CHAT]


def view_differs(case: Case) -> None:
    view: View = case.alice.views[CHAT]
    seq = int(case.third[1:])
    message = view.events[seq].message
    assert message is not None
    view.events[seq] = view.events[seq]._replace(message=message._replace(payload="another"))


def shown_from_before(case: Case) -> None:
    case.server.react(case.first, ALICE, "c")
    case.stored = case.server.stored()
    for seen in (case.alice, case.carol):
        seen.views[CHAT].add(Event.read(case.server.events[-1]))


def hidden_without_reason(case: Case) -> None:
    events = case.alice.views[CHAT].events
    events[4] = Event("hidden", CHAT, 4)


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (lost, "lost"),
        (doubled, "doubled"),
        (seq_doubled, "doubled"),
        (gap, "gap"),
        (refused_and_there, "invented"),
        (never_sent, "invented"),
        (elsewhere, "order"),
        (two_answers, "doubled"),
        (back_from_the_dead, "content"),
        (never_deleted, "lost"),
        (not_as_edited, "content"),
        (reaction_lost, "content"),
        (reaction_invented, "content"),
        (event_missed, "gap"),
        (follower_missed, "gap"),
        (missed_by_all, "gap"),
        (stored_differently, "order"),
        (delivered_twice, "doubled"),
        (delivered_late, "order"),
        (heard_after_removal, "leaked"),
        (heard_between, "leaked"),
        (removal_not_delivered, "gap"),
        (different_events, "order"),
        (receipt_as_an_event, "order"),
        (mark_missed, "marks"),
        (mark_going_back, "marks"),
        (mark_of_a_channel, "marks"),
        (reaction_repeated, "order"),
        (pin_repeated, "order"),
        (added_twice, "order"),
        (not_expired, "content"),
        (shown_to_the_removed, "membership"),
        (not_shown_to_a_member, "membership"),
        (out_of_order, "order"),
        (last_seq_wrong, "order"),
        (unread_wrong, "unread"),
        (read_forgotten, "unread"),
        (unknown_chat, "invented"),
        (view_differs, "content"),
        (shown_from_before, "leaked"),
        (hidden_without_reason, "hidden"),
    ],
)
def test_a_planted_mistake(plant: Callable[[Case], None], kind: str) -> None:
    case = Case()
    plant(case)
    assert kind in case.faults()
