"""KV blocks on devices: gathering and scattering them. Knows torch; neither vLLM nor Ray."""
