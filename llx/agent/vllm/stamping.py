"""Where an instance's outputs leave vLLM: stamped with owner and offset, on the core thread."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, UtilityOutput

from llx.agent.endpoint import InstanceEndpoint
from llx.core.model import RequestId
from llx.wire import Outputs, Reply

if TYPE_CHECKING:
    from llx.agent.vllm.engine import LlxEngineCore


class StampingQueue:
    """Stands where vLLM's output queue was: stamps ownership and hands over to the endpoint."""

    def __init__(self, core: "LlxEngineCore") -> None:
        self._core = core

    def put_nowait(self, item: tuple[int, EngineCoreOutputs] | bytes) -> None:
        """Take one step's outputs for one peer, a utility's reply, or vLLM's last word."""
        endpoint = self._core.llx_endpoint
        assert endpoint is not None, "no output before the endpoint is bound"
        if isinstance(item, bytes):
            endpoint.close("the engine failed; its log has the traceback")
            return
        peer, outputs = item
        if outputs.utility_output is not None:
            self._reply(endpoint, peer, outputs.utility_output)
            return
        stamps = self._core.llx_ownership.stamp(_marks(outputs.outputs))
        kept = [
            (output, stamp)
            for output, stamp in zip(outputs.outputs, stamps, strict=True)
            if stamp is not None
        ]
        if not kept and outputs.scheduler_stats is None:
            return
        outputs.outputs = [output for output, _ in kept]
        encode = self._core._llx_encoder.encode
        endpoint.emit(peer, Outputs(0, [stamp for _, stamp in kept]), lambda: encode(outputs))

    def _reply(self, endpoint: InstanceEndpoint, peer: int, output: UtilityOutput) -> None:
        error = output.failure_message or ""
        result = output.result.result if output.result is not None else None
        encode = self._core._llx_encoder.encode
        endpoint.emit(peer, Reply(output.call_id, error), None if error else lambda: encode(result))


def _marks(outputs: Iterable[EngineCoreOutput]) -> Iterable[tuple[RequestId, int, bool]]:
    for output in outputs:
        yield output.request_id, len(output.new_token_ids), output.finish_reason is not None
