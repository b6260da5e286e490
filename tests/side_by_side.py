"""A plugin of pytest: in which order tests run, and which of them run side by side (`-n`)."""

from pathlib import Path
from typing import Any, Final

import pytest

LONGEST_FIRST: Final = ("migration", "hosts", "e2e", "chaos", "contract", "cluster", "top")
"""Directories that are begun before all others, so that none of them is waited for at the end."""
STAY_TOGETHER: Final = {
    "chaos": "chaos",
    "migration": "vLLM",
    "hosts": "vLLM",
    "e2e": "vLLM",
    "contract": "vLLM",
}
"""Directories that one process runs, by what they share: a start that takes a minute; or the two
cores, for which several clusters of vLLM engines would fight each other into their deadlines."""
WITHOUT_ENGINES: Final = {
    "contract": ("transport", "transport_media"),
    "e2e": ("arguments", "chaos", "lifecycle", "scaling", "secured_gateway"),
    "hosts": (
        "bad_hosts", "doctor", "facts", "head_move", "install", "play", "ray", "rig", "ssh",
        "tunnel", "up", "upgrade",
    ),
}  # fmt: skip
"""Files there that start no vLLM engine: they run beside those that do."""
WITH_RAY: Final = ("head_move", "ray", "up", "upgrade")
"""Those of `hosts` that start Ray on several hosts: one process runs them, one after the other."""
STAND_ALONE: Final = ("cluster", "top")
"""Directories in which no test shares anything with the next one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(directory_of(item.nodeid), len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests side by side (`-n`): a file, or a directory that stays together, is one process's."""
    from xdist.scheduler import LoadScopeScheduling  # a plugin that one may lack

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            directory = directory_of(nodeid)
            if directory == "hosts" and subject_of(nodeid) in WITH_RAY:
                return "Ray"
            if directory in STAY_TOGETHER and not is_without_engines(nodeid):
                return STAY_TOGETHER[directory]
            return nodeid if directory in STAND_ALONE else nodeid.partition("::")[0]

    for directory, subjects in WITHOUT_ENGINES.items():
        for subject in subjects:
            path = Path(__file__).parent / directory / f"test_{subject}.py"
            assert path.exists(), f"WITHOUT_ENGINES names {path}, which is gone"
    config.option.loadscopereorder = False  # the order of collection is the better one
    return Scheduling(config, log)


def directory_of(nodeid: str) -> str:
    """The first directory below `tests`; of a file there, its name."""
    return nodeid.partition("::")[0].removeprefix("tests/").partition("/")[0]


def is_without_engines(nodeid: str) -> bool:
    """Whether its file is among those that start no vLLM engine."""
    return subject_of(nodeid) in WITHOUT_ENGINES.get(directory_of(nodeid), ())


def subject_of(nodeid: str) -> str:
    """What its file is named after."""
    return Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
