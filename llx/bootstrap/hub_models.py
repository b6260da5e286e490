"""Models of the Hugging Face hub on hosts: each host fetches them itself, all the same commit.

What fetches is `llx.agent.hub_model`, in the host's node environment. A model that is complete is
used without the hub being asked: a branch that moves on moves nobody, until `llx model pull`.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llx import __version__
from llx.bootstrap.host_layout import HostLayout
from llx.bootstrap.model_files import HubModel, commit_of
from llx.bootstrap.models import is_whole, read_manifest
from llx.bootstrap.shell import OnProgress, Shell
from llx.errors import HostError, InstallError
from llx.secret import Secret

_LOOK_UP_TIMEOUT_S = 120.0
_PULL_TIMEOUT_S = 24 * 3600.0
_PROGRESS = '{"llx": "progress"'
_QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True)
class HubAccess:
    """With what a host asks the hub.

    Attributes:
        python: Of the host's node environment.
        token: For what is not public; else one that lies there is used, if any.
        endpoint: Another hub.
    """

    python: PurePosixPath
    token: Secret | None = None
    endpoint: str | None = None


class HubPins:
    """The commit of each model that the hosts of a cluster get: one for all of them.

    Args:
        known: By the model's name on hosts.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._commits = dict(known or {})
        self._lock = threading.Lock()

    @classmethod
    def of_hosts(cls, sources: Mapping[str, Mapping[str, str]], *, first: str) -> "HubPins":
        """What hosts have already; where they differ, one of them decides.

        Args:
            sources: By host, where its complete models came from, by their name.
            first: The host that decides before others.
        """
        known: dict[str, str] = {}
        for host in sorted(sources, key=lambda each: each != first):
            for name, source in sources[host].items():
                commit = commit_of(source)
                if commit is not None:
                    known.setdefault(name, commit)
        return cls(known)

    def get(self, model: HubModel) -> str | None:
        """The commit, if it is settled."""
        return model.commit or self._commits.get(model.name)

    def settle(self, model: HubModel, commit: str) -> str:
        """What a host was told by the hub; returns what the first one was told."""
        with self._lock:
            return self._commits.setdefault(model.name, commit)


def ensure_hub_model(
    shell: Shell,
    layout: HostLayout,
    model: HubModel,
    pins: HubPins,
    access: HubAccess,
    on_progress: OnProgress | None = None,
) -> bool:
    """Make the host have `model` at the commit that all hosts get.

    One that lies there complete will do, if it is of that commit or was copied there by hand; then
    nobody is asked.

    Returns:
        Whether anything had to be done.

    Raises:
        HostError: As `pull_model`.
    """
    commit = pins.get(model)
    if _is_there(shell, layout.models / model.name, commit):
        return False
    if commit is None:
        commit = pins.settle(model, look_up_commit(shell, layout, model, access))
    return pull_model(shell, layout, model, access, commit=commit, on_progress=on_progress)


def look_up_commit(shell: Shell, layout: HostLayout, model: HubModel, access: HubAccess) -> str:
    """Have the host ask which commit the model's revision is now.

    Raises:
        HostError: The hub does not say.
    """
    hear = _Hearer(None)
    options = ["--look-up", *_revision(model.revision)]
    _ask(shell, layout, model, access, options, hear, timeout_s=_LOOK_UP_TIMEOUT_S)
    return hear.commit


def pull_model(
    shell: Shell,
    layout: HostLayout,
    model: HubModel,
    access: HubAccess,
    *,
    commit: str | None = None,
    on_progress: OnProgress | None = None,
) -> bool:
    """Have the host fetch a model from the hub, with the node environment's own library.

    Args:
        shell: The host.
        layout: Of the host.
        model: Which.
        access: With what.
        commit: Of the model; None: what its revision is now.
        on_progress: Told, about once a second, how many bytes are there.

    Returns:
        Whether anything was fetched.

    Raises:
        HostError: The hub does not give it, or there is too little space; says why.
    """
    place = layout.models / model.name
    options = ["--to", str(place), *_revision(commit or model.revision)]
    hear = _Hearer(on_progress)
    _ask(shell, layout, model, access, options, hear, timeout_s=_PULL_TIMEOUT_S)
    return hear.outcome == "fetched"


def node_python(shell: Shell, layout: HostLayout, given: Path | None) -> PurePosixPath:
    """The interpreter of the host's node environment: as set, else of llx's own.

    Raises:
        InstallError: There is none yet.
    """
    if given is not None:
        return layout.there(given)
    script = 'ls -d "$1/node/$2"-*/bin/python'
    listing = shell.run(["sh", "-c", script, "-", str(layout.root), __version__])
    if not listing.stdout.strip():
        raise InstallError(
            f"{shell.host} has no node environment yet, and it is what fetches models",
            remedy="`llx up` makes it; or copy the model from here: llx model add",
        )
    return PurePosixPath(listing.stdout.splitlines()[0])


def is_progress(line: str) -> bool:
    """Whether a line of what fetches says only how far it is."""
    return line.startswith(_PROGRESS)


def _is_there(shell: Shell, place: PurePosixPath, commit: str | None) -> bool:
    """Whether it is complete and, if it is of the hub, at that commit; None: at any."""
    there = read_manifest(shell, place)
    if there is None or there.commit not in (None, commit or there.commit):
        return False
    return is_whole(shell, place, there)


def _revision(revision: str | None) -> list[str]:
    return [] if revision is None else [f"--revision={revision}"]


def _ask(
    shell: Shell,
    layout: HostLayout,
    model: HubModel,
    access: HubAccess,
    options: Sequence[str],
    hear: "_Hearer",
    *,
    timeout_s: float,
) -> None:
    """Run `llx.agent.hub_model` there, and hear its outcome."""
    hub_home = str(layout.hub_home(model.name))  # removed, so nothing is left in the home
    environment = {"HF_HOME": hub_home, "HF_TOKEN_PATH": _token_path(shell, layout), **_QUIET}
    environment |= {"HF_ENDPOINT": access.endpoint} if access.endpoint else {}
    done = shell.run(
        [str(access.python), "-m", "llx.agent.hub_model", model.repository, *options],
        stdin=b"" if access.token is None else access.token.reveal().encode(),
        timeout_s=timeout_s,
        environment=environment,
        on_line=hear.line,
    )
    shell.run(["rm", "-rf", hub_home])
    if hear.is_hub_away:
        hear.remedy = (
            f"let {shell.host} reach {access.endpoint or 'https://huggingface.co'}, or copy the "
            f"model from here: llx model add {model.name} DIR"
        )
    if not done.is_success or hear.outcome is None:
        raise HostError(
            hear.problem or f"the download ended with exit code {done.exit_code}",
            host=shell.host,
            step=f"pull {model}",
            process_exit_code=done.exit_code,
            stderr_tail="" if hear.problem else done.stderr_tail,
            remedy=hear.remedy or "repeat it: what is there is kept",
        )


def _token_path(shell: Shell, layout: HostLayout) -> str:
    """Where a token lies there: the cluster's, else the one its user logged in with."""
    given = layout.state / "hf.token"
    own = layout.home / ".cache" / "huggingface" / "token"
    return str(given if shell.run(["test", "-r", str(given)]).is_success else own)


class _Hearer:
    """Understands what `llx.agent.hub_model` prints."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self.outcome: str | None = None
        self.commit = ""
        self.is_hub_away = False
        self.problem = ""
        self.remedy = ""

    def line(self, line: str) -> None:
        if not line.startswith('{"llx": '):
            return
        said = json.loads(line)
        match said["llx"]:
            case "progress" if self._on_progress is not None:
                self._on_progress(said["done"], said["total"])
            case "away":
                self.problem, self.is_hub_away = said["problem"], True
            case "failed":
                self.problem, self.remedy = said["problem"], said["remedy"]
            case "found":
                self.outcome, self.commit = "found", said["commit"]
            case "fetched" | "unchanged":
                self.outcome = said["llx"]
            case _:
                pass
