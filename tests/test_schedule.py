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


_TERMS = st.one_of(
    st.integers(0, 90).map(str),
    st.just("end"),
    st.builds(
        lambda every, start, stop: f"every {every} from {start} until {stop}",
        st.integers(1, 12), st.integers(0, 40), st.integers(0, 90),
    ),
)  # fmt: skip


@given(
    terms=st.lists(_TERMS, min_size=1, max_size=6),
    total=st.integers(0, 80),
    start=st.integers(0, 90),
)
def test_a_count_without_a_list_is_the_length_of_the_list(terms, total, start):
    schedule = Schedule(", ".join(terms))
    assert schedule.count(total, start=start) == sum(s >= start for s in schedule.steps(total))


def test_the_largest_schedules_are_counted_and_not_listed():
    schedule = Schedule("every 1, every 7, 0, end")
    assert schedule.count(10**12) == 10**12 + 1
    assert Schedule("every 6, every 10").count(30 * 10**12) == 7 * 10**12
    many = ", ".join(f"every 3 from {9 * k} until {9 * k + 6}" for k in range(2000))
    assert Schedule(many).count(10**9) == 6000
    with pytest.raises(RecipeError, match=r"fires more than 4,000,000 times.*larger number"):
        schedule.steps(10**12)
    primes = ", ".join(f"every {p}" for p in range(1000, 1100))
    with pytest.raises(RecipeError, match=r"overlap; write fewer"):
        Schedule(primes).count(10**15)


@pytest.mark.parametrize("text", ["every " + "9" * 5000, "1" * 16, "0," * 60_000 + "0"])
def test_refuses_schedules_that_are_too_long(text):
    with pytest.raises(RecipeError, match="schedule"):
        Schedule(text)
