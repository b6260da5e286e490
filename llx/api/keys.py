"""The keys on the cluster's own sockets: how old, and who does not listen with them yet."""

from typing import Literal

from llx.api.resource import Resource


class KeysStatus(Resource):
    """`made_at`: in seconds of the epoch; None: by a release of llx that did not say.

    `is_changing`: they are being replaced, and the former ones are known still.
    `awaited`: the processes that are not known to listen with them: they have not changed over, or
    are out of the head's reach.
    """

    api_version: Literal["v1"] = "v1"
    made_at: float | None
    is_changing: bool
    awaited: list[str] = []
