"""Who a request is from, and how urgent it is."""

import hashlib

import pytest

from llx.gateway.auth import ApiKeys, PriorityClasses, Tenant
from llx.specs import ApiKeySpec, PriorityClassSpec


def key_spec(tenant, key, priority_class=None):
    return ApiKeySpec(tenant, hashlib.sha256(key.encode()).hexdigest(), priority_class)


CLASSES = PriorityClasses(
    [
        PriorityClassSpec("normal", 10, is_default=True),
        PriorityClassSpec("interactive", 0),
        PriorityClassSpec("batch", 20),
    ]
)


def test_without_keys_everyone_is_anonymous():
    assert ApiKeys([]).authenticate(None).name == "anonymous"


@pytest.mark.parametrize(
    ("header", "tenant"),
    [
        ("Bearer sk-alice", "alice"),
        ("bearer sk-bob", "bob"),
        ("Bearer  sk-alice ", "alice"),
        ("Bearer sk-eve", None),
        ("Bearer ", None),
        ("Basic sk-alice", None),
        ("sk-alice", None),
        (None, None),
    ],
)
def test_a_key_names_its_tenant(header, tenant):
    keys = ApiKeys([key_spec("alice", "sk-alice"), key_spec("bob", "sk-bob")])
    found = keys.authenticate(header)
    assert (found.name if found else None) == tenant


@pytest.mark.parametrize(
    ("header", "body", "tenant_class", "expected"),
    [
        (None, None, None, "normal"),
        (None, None, "batch", "batch"),
        (None, 0, "batch", "interactive"),
        (None, -5, None, "interactive"),
        (None, 1, None, "normal"),
        (None, 10, None, "normal"),
        (None, 11, None, "batch"),
        (None, 99, None, "batch"),
        ("interactive", 99, "batch", "interactive"),
    ],
)
def test_the_class_of_a_request(header, body, tenant_class, expected):
    assert CLASSES.resolve(header, body, Tenant("t", tenant_class)).name == expected


def test_an_unknown_class_is_not_guessed():
    assert CLASSES.resolve("urgent", None, Tenant("t")) is None
    assert CLASSES.names() == ["interactive", "normal", "batch"]
