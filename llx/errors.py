"""The exception tree. Every error says what happened, to whom, and what to do about it.

Nothing here imports anything of llx. Expected outcomes (an abort, no room) are values, not
exceptions; a broken invariant is an ``assert``.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the ``llx`` command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    CONFLICT = 5
    PARTIAL = 6
    TIMEOUT = 7
    CHECK_FAILED = 8
    INTERRUPTED = 130


class LlxError(Exception):
    """Base of every error llx raises on purpose.

    Args:
        message: What happened, and to whom. One line where possible.
        remedy: What the reader can do about it; empty when there is nothing to add.
        detail: Longer evidence, such as the tail of a log; shown below the message.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str, *, remedy: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class ConfigError(LlxError):
    """cluster.yaml, a flag or an environment variable is wrong."""

    exit_code = ExitCode.USAGE


class InstallError(LlxError):
    """The node environment is missing, incomplete or of the wrong version."""


class HostError(LlxError):
    """A step failed on a host.

    Args:
        host: The host's name.
        step: What was being done.
        process_exit_code: Exit code of the failed command, if one ran.
        stderr_tail: Last lines of its standard error.
    """

    def __init__(
        self,
        message: str,
        *,
        host: str,
        step: str,
        process_exit_code: int | None = None,
        stderr_tail: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(f"{host}: {step}: {message}", remedy=remedy, detail=stderr_tail)
        self.host = host
        self.step = step
        self.process_exit_code = process_exit_code


class UnreachableError(LlxError):
    """A host, agent, gateway or control API does not answer."""

    exit_code = ExitCode.UNREACHABLE


class NotFoundError(LlxError):
    """A cluster, host, instance or request of that name does not exist."""

    exit_code = ExitCode.NOT_FOUND


class ConflictError(LlxError):
    """Something else holds the name, the port, the device or the lock."""

    exit_code = ExitCode.CONFLICT


class DeadlineError(LlxError):
    """A wait ran past its deadline."""

    exit_code = ExitCode.TIMEOUT


class CheckError(LlxError):
    """A check the user asked for did not hold."""

    exit_code = ExitCode.CHECK_FAILED


class EngineError(LlxError):
    """An engine refused, failed or died."""


class StillWritingError(EngineError):
    """A copy has not ended in time: where it writes, nothing else may ever be put."""


class RemoteError(LlxError):
    """The other side of a connection reported a failure of its own."""


class WireError(LlxError):
    """A message from a socket cannot be accepted: version, size, shape or content."""
