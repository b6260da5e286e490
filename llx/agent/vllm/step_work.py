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
    num_decodes = len(cached.req_ids)
    decode_context = sum(cached.num_computed_tokens) + num_decodes
    if output.total_num_scheduled_tokens == num_decodes and not output.scheduled_new_reqs:
        return (0, num_decodes, decode_context, 0, decode_context)  # as in most steps
    starts = [(each.req_id, each.num_computed_tokens) for each in output.scheduled_new_reqs]
    for index, request in enumerate(cached.req_ids):
        if scheduled[request] != 1:
            start = cached.num_computed_tokens[index]
            starts.append((request, start))
            num_decodes -= 1
            decode_context -= start + 1
    num_prefill = prefill_context = num_square = 0
    for request, start in starts:
        end = start + scheduled[request]
        if end - start == 1 and start:
            num_decodes += 1
            decode_context += end
            continue
        num_prefill += end - start
        prefill_context += end
        num_square += end**2 - start**2
    context = prefill_context + decode_context
    return (num_prefill, num_decodes, context, num_square, decode_context)
