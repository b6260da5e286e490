"""What all resources have in common."""

from pydantic import BaseModel, ConfigDict

API_VERSION = "v1"
MAX_VERB_CHARS = 100
MAX_NOTE_CHARS = 2000


class Resource(BaseModel):
    """Frozen; nothing is taken that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")
