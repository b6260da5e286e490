"""The vLLM adapter: the only part of an instance that knows vLLM, for the pinned version alone.

What it leans on inside vLLM is listed in docs/vllm-adapter.md and held by contract tests.
"""
