"""Which request is meant by an id: the engine's, the gateway's or the client's own. Pure."""

import difflib
import heapq
import itertools
import re
from collections.abc import Sequence

from llx.cluster.requests.listing import Listing, Located
from llx.errors import ConflictError, NotFoundError

_MAX_NAMED = 5
_MAX_NEAR = 3
_SHORTEST_PART = 4
_MAX_COMPARED = 200
_LIST = "llx req ls"
_BEGINNING = re.compile(r"(\d+_)?[a-z]+[-_]")
_PROMPT = re.compile(r"-\d+\Z")
_RANDOM = re.compile(r"-[0-9a-f]{8}\Z")


def find(listing: Listing, given: str) -> list[Located]:
    """The request that is meant: see `RequestIndex.find`."""
    return RequestIndex(listing).find(given)


class RequestIndex:
    """Finds requests of a listing by any of their ids, each id in the same short time."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._by_id: dict[str, list[Located]] = {}
        self._by_name: dict[str, list[Located]] = {}
        self._by_client_id: dict[str, list[Located]] = {}
        for each in listing.requests:
            self._by_id.setdefault(each.view.id, []).append(each)
            self._by_name.setdefault(each.view.name, []).append(each)
            for client_id in _client_ids(each.view.id):
                self._by_client_id.setdefault(client_id, []).append(each)

    def find(self, given: str, *, suggests: bool = True) -> list[Located]:
        """The request that is meant: all its generations, of which there are several with ``n``.

        `given` is tried as, in this order:

        1. the engine's id: exactly that generation;
        2. `x-llx-request-id`: all its generations;
        3. the client's own id, its `x-request-id`. All generations, if they belong to one request.

        `suggests`: where there is none, name those that may be meant, which takes a while.

        Raises:
            NotFoundError: There is none, as far as instances were heard.
            ConflictError: Several requests carry that client's id.
        """
        if not given:
            raise self._unknown(given, suggests)
        for index in (self._by_id, self._by_name):
            if given in index:
                return index[given]
        found = self._by_client_id.get(given, [])
        names = list(dict.fromkeys(each.label for each in found))
        if len(names) > 1:
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            raise ConflictError(
                f'{len(names)} requests carry the id "{given}": '
                f"{', '.join(names[:_MAX_NAMED])}{more}",
                remedy="name one of these",
            )
        if not found:
            raise self._unknown(given, suggests)
        return found

    def _unknown(self, given: str, suggests: bool) -> NotFoundError:
        return NotFoundError(
            f'no request "{given}": it has ended, or never was',
            remedy=_suggestion(given, self._listing.requests) if suggests else _LIST,
            detail="\n".join(f"not asked: {each}" for each in self._listing.not_asked),
        )


def _client_ids(engine_id: str) -> set[str]:
    """What a client may have called a request that the engine calls that.

    vLLM makes engine ids of it: ``cmpl-<id>-<prompt>-<random>`` and ``chatcmpl-<id>-<random>``,
    with ``<k>_`` before the k-th of several generations. A client's id may end in what looks like
    a number of a prompt or like a random end, and the engine's need have neither.
    """
    beginning = _BEGINNING.match(engine_id)
    if beginning is None:
        return set()
    whole = engine_id[beginning.end() :]
    without_random = _RANDOM.sub("", whole)
    return {
        each for full in (whole, without_random) for each in (full, _PROMPT.sub("", full)) if each
    }


def _suggestion(given: str, requests: Sequence[Located]) -> str:
    """Ids that may be meant: those that contain it, else those that look much like it."""
    ids = list(dict.fromkeys(word for each in requests for word in (each.label, each.view.id)))
    near = [each for each in ids if len(given) >= _SHORTEST_PART and given in each]
    near = near or difflib.get_close_matches(given, _first_alike(given, ids), n=_MAX_NEAR)
    if not near:
        return _LIST
    return f"{_LIST}; did you mean {' or '.join(near[:_MAX_NEAR])}?"


def _first_alike(given: str, ids: Sequence[str]) -> list[str]:
    """Those that begin most like it.

    Comparing with all that a large cluster has would hold up everything else that the head does.
    """

    def num_alike(each: str) -> int:
        pairs = zip(given, each, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    return heapq.nlargest(_MAX_COMPARED, ids, key=num_alike)
