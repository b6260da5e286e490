"""What other threads tell the application."""

from textual.message import Message

from llx.api import Snapshot
from llx.errors import LlxError


class Looked(Message):
    """There is a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot


class LookFailed(Message):
    """There is none, and why."""

    def __init__(self, error: LlxError) -> None:
        super().__init__()
        self.error = error


class Acted(Message):
    """What came of an action."""

    def __init__(self, words: str, *, is_error: bool = False) -> None:
        super().__init__()
        self.words = words
        self.is_error = is_error
