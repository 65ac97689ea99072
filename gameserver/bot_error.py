"""How a bot says that it could not."""

from __future__ import annotations


class BotError(Exception):
    """The session did not end well; the message is one sentence, `code` the server's error code if it gave one."""

    def __init__(self, sentence: str, code: str | None = None) -> None:
        super().__init__(sentence)
        self.code = code
