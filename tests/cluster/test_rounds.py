"""How often the driver looks at all hosts and units, when its agents tell news all the time."""

import pytest

from llx.cluster.driving.driver import pause_s


@pytest.mark.parametrize(
    ("round_s", "pause"),
    [(0.0001, 0.01), (0.015, 0.15), (3.0, 0.25)],
    ids=[
        "few: what comes together",
        "many: a tenth of the loop",
        "others worked meanwhile: not for long",
    ],
)
def test_a_driver_leaves_the_loop_to_others(round_s: float, pause: float) -> None:
    assert pause_s(round_s) == pytest.approx(pause)
