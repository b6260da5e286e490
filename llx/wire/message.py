"""What all messages have in common."""

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages: encoded as an array headed by the class name."""
