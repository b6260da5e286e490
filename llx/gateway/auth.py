"""API keys and priority classes: who a request is from and how urgent it is."""

import hashlib
import hmac
from dataclasses import dataclass

from llx.specs import ANONYMOUS, ApiKeySpec, PriorityClassSpec


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who holds an API key."""

    name: str
    priority_class: str | None = None


class ApiKeys:
    """The configured keys, by SHA-256. Without any, every request is `anonymous`'s."""

    def __init__(self, specs: list[ApiKeySpec]) -> None:
        self._specs = [(bytes.fromhex(spec.sha256), spec) for spec in specs]

    def authenticate(self, authorization: str | None) -> Tenant | None:
        """The tenant of an ``Authorization`` header; None means 401.

        Every key is compared, each in constant time, so that timing tells nothing.
        """
        if not self._specs:
            return Tenant(ANONYMOUS)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(key.strip().encode()).digest()
        tenant = None
        for expected, spec in self._specs:
            if hmac.compare_digest(digest, expected):
                tenant = Tenant(spec.tenant, spec.priority_class)
        return tenant


class PriorityClasses:
    """The cluster's priority classes, most urgent first."""

    def __init__(self, specs: list[PriorityClassSpec]) -> None:
        self._ordered = sorted(specs, key=lambda spec: spec.priority)
        self._by_name = {spec.name: spec for spec in specs}
        defaults = [spec for spec in specs if spec.is_default]
        self._default = defaults[0] if defaults else self._ordered[-1]

    def names(self) -> list[str]:
        """Class names, most urgent first."""
        return [spec.name for spec in self._ordered]

    def resolve(
        self, header: str | None, body_priority: int | None, tenant: Tenant
    ) -> PriorityClassSpec | None:
        """The class of a request; None if the header names no class.

        The header wins over the body's integer, that over the tenant's class, that over the
        default. An integer picks the most urgent class that is not more urgent than it asks for,
        or the least urgent class if it asks for less than any.
        """
        if header is not None:
            return self._by_name.get(header)
        if body_priority is not None:
            fitting = [spec for spec in self._ordered if spec.priority >= body_priority]
            return fitting[0] if fitting else self._ordered[-1]
        if tenant.priority_class is not None:
            # A key may come before the gateway that knows its class: gateways start one by one.
            return self._by_name.get(tenant.priority_class, self._default)
        return self._default
