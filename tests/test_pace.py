from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from conescope.measuring.pace import Pace


def passed(share, moments, between, cost):
    """Which moments pass in a training with fixed times, and the share that measuring took."""
    now = [0.0]
    pace = Pace(share, clock=lambda: now[0])
    found, spent = [], 0.0
    for moment in range(moments):
        if pace.passes():
            found.append(moment)
            with pace.measuring():
                now[0] += cost
            spent += cost
        now[0] += between
    return found, spent / now[0]


def test_without_a_share_all_pass():
    assert passed(None, 20, between=1.0, cost=100.0)[0] == list(range(20))


def test_what_passes_is_evenly_spaced():
    found, _ = passed(0.05, 1000, between=1.0, cost=1.0)
    assert found[:2] == [0, 64]  # the first moment is paid for first
    assert {b - a for a, b in pairwise(found[1:])} == {32}  # the least power of two above 19


@given(
    share=st.floats(0.01, 0.9),
    between=st.floats(1e-3, 10),
    cost=st.floats(1e-3, 100),
)
def test_the_share_is_kept_and_used(share, between, cost):
    needed = cost / (share * between)
    moments = min(2000, int(40 * needed) + 40)
    found, taken = passed(share, moments, between, cost)
    assert found[0] == 0
    if len(found) > 1:
        assert taken <= share * (1 + 1e-9)
    if moments > 30 * needed:
        assert taken >= 0.4 * min(share, cost / (cost + between))
