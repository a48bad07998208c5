"""Greeting: a feature with one route. Copy this file into plugins/."""

from typing_extensions import TypedDict

from config.settings import Section
from handlers.http.base import ApiHandler
from handlers.wire.operations import operation
from plugins import App, Plugin


class Settings(Section):
    greeting: str = "Hello"  # read from GREETING


class Greeted(TypedDict):
    greeting: str


class Greeting(ApiHandler):
    def initialize(self, word: str) -> None:
        self._word = word

    @operation({200: Greeted})
    def get(self) -> None:
        """Greet the caller."""
        self.reply({"greeting": f"{self._word}, {self.session.public_id}!"})


def setup(app: App, settings: Settings) -> Plugin:
    return Plugin("greeting", routes=(("/greeting", Greeting, {"word": settings.greeting}),))
