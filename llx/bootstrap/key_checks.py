"""What `llx doctor` says of certificates that end and keys that are old. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from llx.api import ClusterStatus, KeysStatus
from llx.bootstrap.host_checks import Check, CheckState
from llx.bootstrap.host_finding import CLUSTER, HostFinding
from llx.errors import ExitCode

_DAY_S: Final = 86400.0
_SOON_DAYS: Final = 30
"""`up` renews what llx has made from ninety days on; whoever runs it at times never reads this."""
_OLD_DAYS: Final = 365
_CERTIFICATES: Final = "certificates"
_KEYS: Final = "keys"
_RAY: Final = "Ray's secrets"


@dataclass(frozen=True, slots=True)
class RaySight:
    """What was seen of Ray's secrets; times in seconds of the epoch.

    Attributes:
        made_at: When token and authority were made; None: not known.
        ends_at: When a host can no longer show its certificate, by host, as far as is known.
        is_half_replaced: An `up --rotate` has begun with it, and not ended.
    """

    made_at: float | None
    ends_at: Mapping[str, float]
    is_half_replaced: bool


def key_checks(status: ClusterStatus, keys: KeysStatus, now: float) -> Iterator[Check]:
    """What is good of them; `now` in seconds of the epoch."""
    ends = [each.certificate_ends_at for each in status.gateways if each.certificate_ends_at]
    if ends:
        yield _good(_CERTIFICATES, f"good for {_days(min(ends) - now)} more")
    if keys.made_at is not None:
        yield _good(_KEYS, f"{_days(now - keys.made_at)} old")


def key_findings(status: ClusterStatus, keys: KeysStatus, now: float) -> Iterator[HostFinding]:
    """What ends soon, has ended, is old or half replaced."""
    for each in status.gateways:
        if each.certificate_ends_at is None:
            continue
        left_s = each.certificate_ends_at - now
        if left_s < _SOON_DAYS * _DAY_S:
            is_over = left_s <= 0
            when = "has ended" if is_over else f"ends in {_days(left_s)}"
            yield HostFinding(
                CLUSTER, _CERTIFICATES, f"that of {each.name} {when}",
                "llx up, after putting the new files in place if it is yours",
                ExitCode.CHECK_FAILED, is_fatal=is_over,
            )  # fmt: skip
    if keys.is_changing:
        names = ", ".join(keys.awaited)
        waits = f": {names} did not change over" if names else ""
        half = f"half replaced by an `up --rotate`{waits}"
        yield _warning(_KEYS, half, "llx up goes on with it")
    elif keys.made_at is not None and now - keys.made_at > _OLD_DAYS * _DAY_S:
        yield _old(_KEYS, now - keys.made_at)


def ray_checks(seen: RaySight, now: float) -> Iterator[Check]:
    """What is good of Ray's."""
    if seen.made_at is not None:
        ends = f", good for {_days(min(seen.ends_at.values()) - now)} more" if seen.ends_at else ""
        yield _good(_RAY, f"{_days(now - seen.made_at)} old{ends}")


def ray_findings(seen: RaySight, now: float) -> Iterator[HostFinding]:
    """What of them ends soon, has ended, is old or half replaced."""
    for host, end in seen.ends_at.items():
        if end - now < _SOON_DAYS * _DAY_S:
            when = "has ended" if end <= now else f"ends in {_days(end - now)}"
            yield HostFinding(
                host, _CERTIFICATES, f"that for Ray {when}", "llx up --rotate; no stream is cut",
                ExitCode.CHECK_FAILED, is_fatal=end <= now,
            )  # fmt: skip
    if seen.is_half_replaced:
        half = "half replaced by an `up --rotate`"
        yield _warning(_RAY, half, "llx up goes on with it")
    elif seen.made_at is not None and now - seen.made_at > _OLD_DAYS * _DAY_S:
        yield _old(_RAY, now - seen.made_at)


def _good(subject: str, detail: str) -> Check:
    return Check(host=CLUSTER, subject=subject, state=CheckState.OK, detail=detail)


def _old(subject: str, age_s: float) -> HostFinding:
    return _warning(subject, f"{_days(age_s)} old", "llx up --rotate; no stream is cut")


def _warning(subject: str, problem: str, remedy: str) -> HostFinding:
    return HostFinding(CLUSTER, subject, problem, remedy, ExitCode.CHECK_FAILED, is_fatal=False)


def _days(seconds: float) -> str:
    days = max(0, int(seconds // _DAY_S))
    return f"{days} day" if days == 1 else f"{days} days"
