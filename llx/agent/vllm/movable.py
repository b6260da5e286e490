"""What can move and what cannot, and between which instances: reasons in words.

A reason is a string for operators; an empty one means that nothing stands in the way.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from vllm.v1.kv_cache_interface import is_full_attention_spec
from vllm.v1.request import Request
from vllm.version import __version__ as vllm_version

from llx.wire import WIRE_VERSION

_SAMPLE_BYTES = 4096
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})


def movable_reason(request: Request) -> str:
    """Why this request is pinned to its instance, at this moment."""
    params = request.sampling_params
    if request.pooling_params is not None or params is None:
        return "a pooling request"
    if request.mm_features:
        return "it has images or other media"
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        return "its prompt is embeddings"
    if request.resumable or request.streaming_queue is not None:
        return "its input is streamed"
    if request.kv_transfer_params is not None:
        return "its KV is handed over by a connector"
    is_in_prefill = request.num_output_tokens == 0 and request.num_computed_tokens > 0
    if is_in_prefill and (
        params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None
    ):
        return "its prompt logprobs are not all out yet"
    return ""


def pinned_by_config(config: Any) -> str:
    """Why no request of an instance of this configuration can move (`VllmConfig`)."""
    parallel = config.parallel_config
    model = config.model_config
    reasons = {
        "speculative decoding": config.speculative_config is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "data parallelism": parallel.data_parallel_size > 1,
        "context parallelism": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
        "a KV connector": config.kv_transfer_config is not None,
        "an encoder cache connector": config.ec_transfer_config is not None,
        "auxiliary outputs": config.aux_output_config.enabled,
        "a pooling model": model.runner_type == "pooling",
        "a diffusion model": config.diffusion_config is not None,
        "an encoder-decoder model": model.is_encoder_decoder,
        "its own scheduler class": config.scheduler_config.scheduler_cls is not None,
        "its own worker extension": bool(parallel.worker_extension_cls),
    }
    return ", ".join(reason for reason, is_so in reasons.items() if is_so)


def pinned_by_cache(cache: Any) -> str:
    """Why KV in such a cache (`KVCacheConfig`) cannot be copied block by block."""
    groups = cache.kv_cache_groups
    if len(groups) != 1:
        return f"a hybrid model: {len(groups)} groups of KV cache"
    if not is_full_attention_spec(groups[0].kv_cache_spec):
        return f"KV cache of another kind than full attention ({_kind(groups[0].kv_cache_spec)})"
    return ""


def _kind(spec: Any) -> str:
    return type(spec).__name__.removesuffix("Spec")


def compatibility(config: Any, layout: str) -> str:
    """What must be equal at both ends of a migration, readable: a mismatch is shown as it is.

    Args:
        config: The instance's `VllmConfig`.
        layout: Of its ranks' KV stores (`KvStore.layout`).
    """
    model, cache = config.model_config, config.cache_config
    parts = {
        "wire": WIRE_VERSION,
        "vllm": vllm_version,
        "model": _model_identity(model),
        "load": str(
            getattr(config.load_config.load_format, "value", config.load_config.load_format)
        ),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization or "none",
        "kv": cache.cache_dtype,
        "block": cache.block_size,
        "tp": config.parallel_config.tensor_parallel_size,
        "layout": layout,
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def _model_identity(model: Any) -> str:
    """Hub id and revision, or of a local directory what its files look like; and its config.

    The config as vLLM has it, overrides included; where the files lie is not part of it.
    """
    config = {
        key: value
        for key, value in model.hf_config.to_dict().items()
        if key not in {"_name_or_path", "transformers_version"}
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    folder = Path(model.model)
    if not folder.is_dir():
        return f"{model.model}@{model.revision or 'main'} {digest.hexdigest()[:16]}"
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            _sample(path, digest)
    return digest.hexdigest()[:32]


def _sample(path: Path, digest: Any) -> None:
    """Header and a few spots of a weights file: two fine-tunes have equal headers and sizes.

    Reading all of it would take minutes; a fine-tune that leaves all the spots untouched is told
    apart by nothing here.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        if path.suffix == ".safetensors" and size >= 8:
            (length,) = struct.unpack("<Q", file.read(8))
            start = 8 + min(length, size - 8)
            digest.update(file.read(start - 8))
        for step in range(16):
            file.seek(start + (size - start) * step // 16)
            digest.update(file.read(_SAMPLE_BYTES))
