"""Greeting: a feature of one route, as a file to put into plugins/."""

from config.settings import Section
from handlers.base import ApiHandler
from plugins import App, Plugin


class Settings(Section):
    greeting: str = "Hello"  # read from GREETING


class Greeting(ApiHandler):
    def initialize(self, word: str) -> None:
        self._word = word

    def get(self) -> None:
        self.reply({"greeting": f"{self._word}, {self.session.public_id}!"})


def setup(app: App, settings: Settings) -> Plugin:
    return Plugin("greeting", routes=(("/greeting", Greeting, {"word": settings.greeting}),))
