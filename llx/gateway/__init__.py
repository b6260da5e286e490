"""The gateway: vLLM's own OpenAI front end, one per pool, over llx's engine-core client."""
