"""Clients that hear frames in any order, and page /sync in any pieces at any time, end with what the server has."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history.imagined import CHAT, Imagined
from tests.history.view import Event, View
from tests.thorough import rounds

PEOPLE = ["alice", "bob", "carol"]
DEEDS = st.lists(st.sampled_from(["send", "send", "edit", "delete", "react", "react", "read"]), max_size=40)


def do(server: Imagined, deed: str, luck: random.Random) -> None:
    who, live = luck.choice(PEOPLE), list(server.messages)
    if deed == "send":
        server.send(who)
    elif deed == "read":
        server.read(who)
    elif live and deed == "edit":
        server.edit(luck.choice(live))
    elif live and deed == "delete":
        server.delete(luck.choice(live))
    elif live:
        server.react(luck.choice(live), who, luck.choice("ab"))


@settings(max_examples=rounds(100, thorough=3_000), deadline=None)
@given(DEEDS, DEEDS, DEEDS, st.randoms(use_true_random=False))
def test_a_view_becomes_what_the_server_has(
    before: list[str], between: list[str], after: list[str], luck: random.Random
) -> None:
    server = Imagined(PEOPLE)
    for deed in before:
        do(server, deed, luck)
    cursor = server.last
    for deed in between:  # what happens between the cursor and the list
        do(server, deed, luck)
    view = View(server.last)
    view.member = True
    view.listed = {message.id: message for message in server.get()}
    frames: list[Event] = []
    for deed in after:
        last = server.last
        do(server, deed, luck)
        if server.last > last and luck.random() < 0.7:  # the others are lost
            frames.append(Event.read(server.events[-1]))
        if luck.random() < 0.3:
            luck.shuffle(frames)
            for frame in frames[: luck.randint(0, len(frames))]:
                view.add(frame)
        if luck.random() < 0.2:
            page = range(cursor + 1, min(server.last, cursor + luck.randint(1, 10)) + 1)
            for seq in page:
                view.add(Event.read(server.sync(seq)))
            cursor += len(page)
    luck.shuffle(frames)
    for frame in frames:
        view.add(frame)
    for seq in range(cursor + 1, server.last + 1):
        view.add(Event.read(server.sync(seq)))
    assert list(view.messages.values()) == server.get()
    assert not view.behind
    assert {event.chat for event in view.events.values()} <= {CHAT}
