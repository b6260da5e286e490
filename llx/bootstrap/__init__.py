"""Making hosts ready: node environments, and (later) facts, plan, playbooks and SSH.

Nothing here imports ray, torch or vllm: this code runs in the operator's plain environment.
"""
