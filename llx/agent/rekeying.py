"""An instance's change to other keys without a lost message: who has parted, who is back.

    input thread                                   sender thread
    sees other keys in the file ─────────────────► Rekey to every session, then sends no more
    Rekeyed from each, or two seconds have passed
    ends the sessions of those that did not answer
    listens anew, at the same ports ─────────────► waits until those who answered are back, or
    Hello (resumes) from each                      time is up; then sends what has queued up

Closing the former listeners ends all their connections, whoever's they are. Between a session's
last word and its return nobody sends it anything, so nothing can be lost: what the engine puts out
meanwhile waits in the endpoint's queue, what the peer has to say waits at the peer.

The endpoint owns the sockets; here is what its two threads tell each other.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import zmq

from llx.curve import Authenticator, ClusterKeys, KeySource, make_listener

log = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
PART_S: Final = 2.0
"""Within this a peer answers the last word, or its session is over."""
BACK_S: Final = 3.0
"""Within this a peer is back with the new keys, or its session is over."""
_BIND_S: Final = 5.0
_PAUSE_S: Final = 0.005


@dataclass(slots=True)
class Rekeying:
    """One change of keys.

    Attributes:
        keys: To listen with from then on.
        asked: Written by the sender, before `told`: the peers, by index, that were told.
        part_until: Written by the sender, before `told`: nobody is waited for any longer than that,
            on the monotonic clock.
        told: Set by the sender, which sends nothing any more.
        parted: Input thread only: those that have answered.
        listens: Set by the input thread: the sockets listen with the new keys.
        back: Written by the input thread: those whose session goes on.
    """

    keys: ClusterKeys
    asked: list[int] = field(default_factory=list)
    part_until: float = 0.0
    told: threading.Event = field(default_factory=threading.Event)
    parted: set[int] = field(default_factory=set)
    listens: threading.Event = field(default_factory=threading.Event)
    back: set[int] = field(default_factory=set)
    back_until: float = 0.0

    def is_parted(self, now: float, is_present: Callable[[int], bool]) -> bool:
        """Whether all have answered that are still there, or time is up."""
        if not self.told.is_set():
            return False
        return now >= self.part_until or all(
            each in self.parted or not is_present(each) for each in self.asked
        )

    def may_resume(self, index: int, now: float) -> bool:
        """Whether a peer that is back has missed nothing."""
        return index in self.parted and now < self.back_until


class KeyWatch:
    """Input thread only: sees when the file has other keys than those that are listened with."""

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._look_at = 0.0
        self.keys = source.ring()[0]

    def look(self, now: float) -> Rekeying | None:
        """A change to begin; None: there is none."""
        if now < self._look_at:
            return None
        self._look_at = now + _LOOK_S
        keys = self._source.ring()[0]
        return None if keys == self.keys else Rekeying(keys)


def listen_anew(
    sockets: "list[tuple[zmq.Socket[Any], str]]",
    authenticator: Authenticator,
    keys: ClusterKeys,
    is_over: Callable[[], bool],
) -> None:
    """Close the listeners, which ends their connections, and open them with other keys.

    Does not come back before they listen, unless `is_over`: without them nobody could reach the
    instance. A port is free again as soon as libzmq's own thread has closed it.
    """
    for socket, address in sockets:
        with contextlib.suppress(zmq.ZMQError):  # it does not listen there any more
            socket.unbind(address)
    authenticator.admit(keys)
    for socket, address in sockets:
        make_listener(socket, keys)
        bind_again(socket, address, is_over)


def bind_again(socket: "zmq.Socket[Any]", address: str, is_over: Callable[[], bool]) -> None:
    """Bind to an address that was this socket's a moment ago; tries until it is, or `is_over`."""
    complain_at = time.monotonic() + _BIND_S
    while not is_over():
        try:
            socket.bind(address)
            return
        except zmq.ZMQError as error:
            if time.monotonic() >= complain_at:
                complain_at += _BIND_S
                log.error("keys.cannot_listen address=%s error=%s", address, error)
        time.sleep(_PAUSE_S)


def wait_back(
    rekeying: Rekeying,
    is_routable: Callable[[int], bool],
    is_present: Callable[[int], bool],
    is_over: Callable[[], bool],
) -> None:
    """Sender thread: wait until all whose session goes on can be sent to, or time is up.

    `is_routable`: sends the peer something that it may get twice, and says whether that went out.
    """
    waiting = set(rekeying.parted)
    while waiting and time.monotonic() < rekeying.back_until and not is_over():
        found = {each for each in waiting & rekeying.back if is_routable(each)}
        waiting = {each for each in waiting - found if is_present(each)}
        if waiting:
            time.sleep(_PAUSE_S)
    if waiting:
        log.warning("keys.not_back num=%d", len(waiting))
