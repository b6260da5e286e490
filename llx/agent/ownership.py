"""Who owns each request of an instance: peer, epoch, how many tokens have left, who pinned it.

Used on the engine's core thread alone, so that a stamp can never be read between an abort and a
re-add of the same id:

    core thread   add(r, e1) … step → stamp (e1, 0..2) … abort(r, e1) … add(r, e2) → stamp (e2, 0..)
    late output of the first life: not stamped e2, because it was stamped when it was made.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from llx.core.model import Epoch, RequestId
from llx.log import get_log
from llx.wire import Add

log = get_log(__name__)


@dataclass(slots=True)
class _Entry:
    peer: int
    epoch: Epoch
    num_tokens: int = 0
    pin: str = ""


class Ownership:
    """The table of requests held, by id."""

    def __init__(self) -> None:
        self._held: dict[RequestId, _Entry] = {}
        self.seen: dict[int, int] = {}
        """Peer → sequence number of the last ADD taken in (`Add.seq`)."""
        self._taken: list[RequestId] = []

    def add(self, peer: int, header: Add) -> bool:
        """Take in an ADD. False if the id is already held; see `is_superseded`."""
        self.seen[peer] = header.seq
        self._taken.append(header.request)
        if header.request in self._held:
            return False
        self._held[header.request] = _Entry(peer, header.epoch, len(header.outputs))
        log.info(
            "request.added",
            request=header.request,
            name=header.name,
            epoch=header.epoch,
            num_outputs=len(header.outputs),
        )
        return True

    def taken(self) -> list[RequestId]:
        """The requests of all ADDs since this was asked last, for the next load report."""
        taken, self._taken = self._taken, []
        return taken

    def is_superseded(self, peer: int, header: Add) -> bool:
        """Whether the peer has the id of its ADD under an earlier epoch: that life of it is over.

        The arbiter has placed the request anew, and by chance where a copy that it has fenced still
        runs. That must be ended before the ADD is taken in.
        """
        entry = self._held.get(header.request)
        return entry is not None and entry.peer == peer and entry.epoch < header.epoch

    def adopt(self, request: RequestId, peer: int, epoch: Epoch, num_tokens: int) -> bool:
        """Own a request that arrives with `num_tokens` tokens of output. False if it is held."""
        if request in self._held:
            return False
        self._held[request] = _Entry(peer, epoch, num_tokens)
        return True

    def set_epoch(self, request: RequestId, epoch: Epoch) -> None:
        """Go on owning a request under another epoch; nothing if it is not held."""
        entry = self._held.get(request)
        if entry is not None:
            entry.epoch = epoch

    def pin(self, request: RequestId, words: str) -> bool:
        """Keep a request from being moved, for the reason in `words`; empty: no longer.

        False if it is not held. The pin ends with the request here, and goes nowhere with it.
        """
        entry = self._held.get(request)
        if entry is not None:
            entry.pin = words
        return entry is not None

    def pin_of(self, request: RequestId) -> str:
        """Why an operator does not want it moved; empty: nobody has said so."""
        entry = self._held.get(request)
        return "" if entry is None else entry.pin

    def held(self, peer: int, requests: Iterable[tuple[RequestId, Epoch]]) -> list[RequestId]:
        """Those of a peer's Abort that it may end: its own, at that epoch or an earlier one."""
        return [
            request
            for request, epoch in requests
            if (entry := self._held.get(request)) is not None
            and entry.peer == peer
            and entry.epoch <= epoch
        ]

    def drop(self, request: RequestId) -> None:
        """Forget a request; its late outputs will find no owner."""
        entry = self._held.pop(request, None)
        if entry is not None:
            log.info(
                "request.dropped", request=request, epoch=entry.epoch, num_outputs=entry.num_tokens
            )

    def of_peer(self, peer: int) -> list[RequestId]:
        """Requests that the peer owns; its sequence number is forgotten."""
        self.seen.pop(peer, None)
        return [request for request, entry in self._held.items() if entry.peer == peer]

    def peer_of(self, request: RequestId) -> int | None:
        """The peer that owns `request`, if it is held."""
        entry = self._held.get(request)
        return entry.peer if entry is not None else None

    def epoch_of(self, request: RequestId) -> Epoch | None:
        """The epoch under which `request` is held, if it is."""
        entry = self._held.get(request)
        return entry.epoch if entry is not None else None

    def stamp(
        self, outputs: Iterable[tuple[RequestId, int, bool]]
    ) -> list[tuple[Epoch, int] | None]:
        """The (epoch, offset) of each output; None where nobody owns it any more.

        Args:
            outputs: Request, number of new tokens, whether this is its last output.
        """
        stamps: list[tuple[Epoch, int] | None] = []
        for request, num_new, is_finished in outputs:
            entry = self._held.get(request)
            if entry is None:
                stamps.append(None)
                continue
            stamps.append((entry.epoch, entry.num_tokens))
            entry.num_tokens += num_new
            if is_finished:
                del self._held[request]
                log.info("request.finished", request=request, num_outputs=entry.num_tokens)
        return stamps

    def __len__(self) -> int:
        return len(self._held)
