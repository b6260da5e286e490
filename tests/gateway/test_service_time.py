"""How long requests take, by those that finished."""

import pytest

from llx.gateway.service_time import ServiceTime


def test_nothing_is_expected_before_one_has_finished() -> None:
    service = ServiceTime()
    service.note(3.0, 0)
    assert service.expected_s(100) == service.expected_s(None) == 0.0


def test_what_others_take_or_less_if_it_may_not() -> None:
    service = ServiceTime()
    service.note(2.0, 100)
    assert service.expected_s(None) == service.expected_s(1000) == pytest.approx(2.0)
    assert service.expected_s(10) == pytest.approx(0.2)


def test_the_last_ones_count_most() -> None:
    service = ServiceTime()
    service.note(2.0, 10)
    for _ in range(100):
        service.note(8.0, 10)
    assert service.expected_s(None) == pytest.approx(8.0, rel=0.02)
