import pytest
from hypothesis import given
from hypothesis import strategies as st

from conescope.errors import RecipeError
from conescope.runs.schedule import Schedule


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0, 50, every 100", (0, 50, 100, 200, 300)),
        ("every 100 from 150", (150, 250)),
        ("every 50 until 120, end", (50, 100, 300)),
        ("every 100 from 0 until 200", (0, 100, 200)),
        ("5, 5, 3", (3, 5)),
        ("end", (300,)),
        ("never", ()),
        ("400", ()),
        ("2ep", (20,)),
        ("every 10ep from 5ep, 7", (7, 50, 150, 250)),
    ],
)
def test_fires_when_the_text_says(text, steps):
    assert Schedule(text).steps(300, iterations_per_epoch=10) == steps


@pytest.mark.parametrize("text", ["", "evry 3", "every", "every 0", "-1", "1.5", "never, 3", "5 6"])
def test_refuses_what_is_no_schedule(text):
    with pytest.raises(RecipeError, match="is no schedule"):
        Schedule(text)


@given(every=st.integers(1, 50), start=st.integers(0, 50), total=st.integers(1, 500))
def test_every_from_is_an_arithmetic_progression(every, start, total):
    steps = Schedule(f"every {every} from {start}").steps(total)
    assert steps == tuple(t for t in range(total + 1) if t >= start and (t - start) % every == 0)


@pytest.mark.parametrize("text", ["0, 50, every 100", "every 30 from 60 until 200", "end", "never"])
def test_one_iteration_at_a_time_is_the_same(text):
    schedule = Schedule(text)
    assert tuple(s for s in range(400) if schedule.fires(s, total=300)) == schedule.steps(300)
    unending = tuple(s for s in range(400) if schedule.fires(s))
    assert unending == (() if text == "end" else schedule.steps(399))


def test_a_loop_of_unknown_length_has_neither_epochs_nor_an_end():
    Schedule("0, every 7").check_loop(None)
    Schedule("0, end").check_loop(70)
    with pytest.raises(RecipeError, match="counts epochs; write iterations"):
        Schedule("0, every 2ep").check_loop(70)
    with pytest.raises(RecipeError, match="say where that is with total_steps"):
        Schedule("0, end").check_loop(None)
