"""An example of each verb, for the end of its help."""

from collections.abc import Iterator
from typing import Final

import typer
from typer.models import CommandInfo

EXAMPLES: Final = {
    "init": "llx init --hosts ubuntu@gpu-1,ubuntu@gpu-2",
    "up": "llx up -y cluster.yaml",
    "down": "llx down --deadline 2m",
    "upgrade": "llx upgrade --dry-run",
    "doctor": "llx doctor cluster.yaml",
    "status": "llx status -w -o json",
    "host ls": "llx host ls -o wide",
    "host add": "llx host add ubuntu@gpu-4 --dry-run",
    "host rm": "llx host rm gpu-4 --dry-run",
    "host drain": "llx host drain gpu-2",
    "host cordon": "llx host cordon gpu-2",
    "host uncordon": "llx host uncordon gpu-2",
    "inst ls": "llx inst ls -o wide",
    "inst get": "llx inst get tiny-0 -o json",
    "inst cordon": "llx inst cordon tiny-0",
    "inst uncordon": "llx inst uncordon tiny-0",
    "inst drain": "llx inst drain tiny-0 --deadline 2m",
    "inst restart": "llx inst restart tiny-0 -y",
    "inst logs": "llx inst logs tiny-0 -f",
    "model ls": "llx model ls",
    "model add": "llx model add llama models/llama --hosts gpu-1,gpu-2",
    "model pull": "llx model pull Qwen/Qwen3-8B",
    "model rm": "llx model rm llama -y",
    "req unpin": "llx req unpin my-request-7",
    "queue": "llx queue urgent",
    "explain": "llx explain my-request-7",
    "scale": "llx scale tiny --min 1 --max 4",
    "migrate": "llx migrate --from tiny-0 --to tiny-1 --count 4 --wait",
    "mig ls": "llx mig ls --open",
    "mig get": "llx mig get m3-1 -o json",
    "mig cancel": "llx mig cancel m3-1",
    "policy show": "llx policy show --model tiny",
    "policy revert": "llx policy revert --model tiny",
    "policy pause": "llx policy pause --model tiny",
    "policy resume": "llx policy resume --model tiny",
    "policy step": "llx policy step --model tiny",
    "rollout": "llx rollout tiny --set max_num_seqs=32 --wait",
    "logs": "llx logs --request my-request-7",
    "play": "llx play playbooks/bootstrap.yaml --dry-run",
    "generate": "llx generate 'Why is the sky blue?' --max-tokens 64",
    "chat": "llx chat --class urgent",
    "demo": "llx demo",
    "node install": "llx node install --platform cpu",
    "node download": "llx node download wheelhouse --platform cuda",
    "verify migration": "llx verify migration --moves 50",
    "chaos freeze": "llx chaos freeze tiny-0 --for 10s -y",
    "chaos slow": "llx chaos slow tiny-0 --for 30s -y",
    "chaos partition": "llx chaos partition gpu-2 --for 30s -y",
    "chaos restart": "llx chaos restart gateway-0 -y",
    "context ls": "llx context ls",
    "context use": "llx context use prod",
    "lock show": "llx lock show",
    "lock release": "llx lock release --dry-run",
    "debug bundle": "llx debug bundle --dry-run",
    "completion": "llx completion bash > ~/.local/share/bash-completion/completions/llx",
}
"""By verb. The others say theirs themselves."""


def add_examples(app: typer.Typer) -> None:
    """End the help of each verb with its example."""
    for verb, info in verbs_of(app):
        if verb in EXAMPLES:
            info.epilog = f"Example: {EXAMPLES[verb]}"


def verbs_of(app: typer.Typer, before: str = "") -> Iterator[tuple[str, CommandInfo]]:
    """Each verb in full, as ``host ls``."""
    for info in app.registered_commands:
        yield f"{before}{info.name}", info
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from verbs_of(group.typer_instance, f"{before}{group.name} ")
