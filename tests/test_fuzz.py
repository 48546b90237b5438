"""Odd values for everything that a user can set: nothing is raised but conescope's own errors."""

import contextlib
import io

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


_SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
_TENSORS = st.one_of(
    st.builds(torch.ones, _SHAPES),
    st.builds(lambda shape: torch.zeros(shape, dtype=torch.int64), _SHAPES),
    st.builds(lambda shape: torch.full(shape, torch.nan), _SHAPES),
    st.just(torch.ones(2, 3, dtype=torch.bool)),
    st.just(torch.ones(2, 3, dtype=torch.float16)),
)
_MODELS = st.sampled_from(
    [torch.nn.Linear(3, 2), torch.nn.Identity(), torch.nn.BatchNorm1d(3), torch.nn.Flatten(0)]
)
_PATHS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["/dev/zero", "/", "", "a\x00b", "\ud800", "no.pt", "x.npy", "é" * 300]),
)


@_QUIET
@given(
    name=st.sampled_from(["entk", "estimate_entk", "plan", "project"]), model=_MODELS, x=_TENSORS
)
def test_kernels_of_odd_models_and_inputs(name, model, x):
    with contextlib.suppress(ConescopeError):
        getattr(cs, name)(model, x)


@_QUIET
@given(a=_TENSORS, b=_TENSORS)
def test_distances_of_odd_matrices(a, b):
    with contextlib.suppress(ConescopeError):
        cs.kernel_distance(cs.Kernel(a), cs.Kernel(b))


@_QUIET
@given(name=st.sampled_from(["load_probe", "load_run"]), path=_PATHS)
def test_files_of_odd_names(name, path, tmp_path):
    with contextlib.chdir(tmp_path), contextlib.suppress(ConescopeError):
        getattr(cs, name)(path)
