"""What is in a step of vLLM, by its scheduler's output."""

from typing import Any

from llx.agent.step_log import Work


def work_of(output: Any) -> Work:
    """Of a ``SchedulerOutput``.

    A request decodes where one token of it is computed and others have their KV already: kernels do
    not tell a prompt's last token from a generated one. Where drafted tokens are checked, their
    requests count as prefills.
    """
    cached, scheduled = output.scheduled_cached_reqs, output.num_scheduled_tokens
    if output.total_num_scheduled_tokens == len(cached.req_ids) and not output.scheduled_new_reqs:
        num_decodes = len(cached.req_ids)  # the many steps in which everybody makes a token
        context = sum(cached.num_computed_tokens) + num_decodes
        return (0, num_decodes, context, 0, context)
    num_prefill = num_decodes = prefill_context = decode_context = num_square = 0
    starts = [
        *zip(cached.req_ids, cached.num_computed_tokens, strict=True),
        *((each.req_id, each.num_computed_tokens) for each in output.scheduled_new_reqs),
    ]
    for request, start in starts:
        num_tokens = scheduled[request]
        end = start + num_tokens
        if num_tokens == 1 and start:
            num_decodes += 1
            decode_context += end
        else:
            num_prefill += num_tokens
            prefill_context += end
            num_square += end**2 - start**2
    context = prefill_context + decode_context
    return (num_prefill, num_decodes, context, num_square, decode_context)
