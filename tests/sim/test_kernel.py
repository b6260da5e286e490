import pytest

from llx.core.model import Nanos
from llx.sim.kernel import Kernel

pytestmark = pytest.mark.sim


def test_step_ends_come_first_then_the_order_of_asking():
    kernel, seen = Kernel(), []
    kernel.at(Nanos(5), lambda: seen.append("a"))
    kernel.step_ends(Nanos(5), 2, lambda: seen.append("step 2"))
    kernel.at(Nanos(5), lambda: seen.append("b"))
    kernel.step_ends(Nanos(5), 1, lambda: seen.append("step 1"))
    kernel.at(Nanos(4), lambda: kernel.after(Nanos(1), lambda: seen.append("c")))
    kernel.run()
    assert seen == ["step 1", "step 2", "a", "b", "c"]
    assert (kernel.now, kernel.num_events) == (5, 6)


def test_what_is_called_off_does_not_happen():
    kernel, seen = Kernel(), []
    timer = kernel.at(Nanos(5), lambda: seen.append("a"))
    kernel.at(Nanos(4), timer.cancel)
    kernel.run()
    assert not seen
    assert kernel.now == 4


def test_the_past_is_closed():
    kernel = Kernel()
    kernel.at(Nanos(5), lambda: None)
    kernel.run()
    with pytest.raises(AssertionError, match="is past"):
        kernel.at(Nanos(4), lambda: None)
