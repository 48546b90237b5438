"""Odd values for everything that a user can set: nothing is raised but conescope's own errors."""

import contextlib
import inspect
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import conescope as cs
from conescope.cli.main import main
from conescope.errors import ConescopeError, RecipeError
from conescope.training.recipe import FIELDS, SECTIONS
from conescope.training.recipe_reading import load_recipe, recipe_from_dict

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**12, -1, 2**63, 10**40]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["every 1", "1GB", "9" * 99, "trace", "adam", "os:system", "a.b:c", "\x1b[31m"]
    ),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
_NAMES = sorted({*FIELDS, *SECTIONS, "model.depth", "lr_schedule.step_size", "no.field", "seed.x"})
_QUIET = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def _nested(values):
    found = {}
    for name, value in values.items():
        section, _, inner = name.partition(".")
        if inner:
            group = found.setdefault(section, {})
            if isinstance(group, dict):
                group[inner] = value
        else:
            found[section] = value
    return found


@_QUIET
@given(st.dictionaries(st.sampled_from(_NAMES), _VALUES, min_size=1, max_size=3))
def test_fields_of_odd_values(values):
    with contextlib.suppress(ConescopeError):
        recipe_from_dict(_nested(values), "drawn", [])


@_QUIET
@given(text=st.text(max_size=60) | st.binary(max_size=60))
def test_recipes_of_odd_text(text, tmp_path):
    file = tmp_path / "drawn.yaml"
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    file.write_bytes(data)
    with contextlib.suppress(RecipeError):
        load_recipe(str(file))


@pytest.mark.parametrize("name", _NAMES)
def test_a_field_with_nothing_behind_it_is_one_line(name, tmp_path):
    section, _, inner = name.partition(".")
    file = tmp_path / "mine.yaml"
    file.write_text(f"{section}:\n  {inner}:\n" if inner else f"{section}:\n")
    is_refused = inner != "" and FIELDS.get(name) is not None and FIELDS[name].default is not None
    with pytest.raises(RecipeError) if is_refused else contextlib.suppress(RecipeError) as told:
        load_recipe(str(file))
    if told is not None:
        assert "\n" not in str(told.value)
        assert section in str(told.value)


@_QUIET
@given(
    command=st.sampled_from(["show", "recipes", "cone", "report", "switch", "audit", "measure"]),
    words=st.lists(
        st.sampled_from(["digits", "--at", "--from", "--out", "/dev/null", "0,5", "-1", "--", "-h"])
        | st.sampled_from(_NAMES).map("--{}".format)
        | st.tuples(st.sampled_from(_NAMES), st.text(max_size=8)).map(lambda t: f"--{t[0]}={t[1]}")
        | st.text(max_size=8),
        max_size=4,
    ),
)
def test_command_lines_of_odd_words(command, words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([command, *words])
        except SystemExit as ended:
            status = ended.code
    assert status in (0, 1, 2)
    assert "\x1b" not in out.getvalue() + err.getvalue()


_ARGUMENTS = st.one_of(
    _SCALARS,
    st.builds(torch.ones, st.lists(st.integers(0, 3), max_size=3).map(tuple)),
    st.just(torch.full((2, 2), torch.nan)),
    st.just(np.ones((2, 2))),
    st.just(torch.nn.Linear(3, 2)),
    st.just(Path("/no/such/place")),
    st.just(Path("/dev/zero")),
    st.just([]),
    st.just({}),
    st.just(object()),
)
_OFFLINE = [name for name in cs.__all__ if name not in ("measure_hub", "lazy_report")]


@pytest.mark.parametrize("name", _OFFLINE)
@settings(_QUIET, max_examples=30)
@given(data=st.data())
def test_public_functions_of_odd_arguments(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(cs, name)
    needed = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is inspect.Parameter.empty and p.kind is not p.VAR_KEYWORD
    ]
    with contextlib.suppress(ConescopeError):
        function(*(data.draw(_ARGUMENTS, label=one) for one in needed))
