"""Every public function and every field of the command line, called with values drawn by type."""

import contextlib
import inspect
import io
import shutil
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import conescope as cs
from conescope.cli.all_commands import _COMMANDS
from conescope.cli.commands import Commands
from conescope.cli.main import main
from conescope.errors import ConescopeError
from conescope.experiments.lazy.finetuning import Finetuning
from conescope.training.recipe import FIELDS

SEED = 20
"""Every draw follows from it; a failure prints the call that failed."""

INTEGERS = [*range(-1, 4), 8, 2**31, 2**63, 10**40]
NUMBERS = [-1.0, 0.0, 0.05, 0.5, 1.0, 1e308, float("inf"), float("nan")]
TEXTS = [
    "", "0", "0, every 1", "trace", "full", "last", "cpu", "cuda:99", "1GB", "weight", "*", "a b",
    "digits", "é\x1b[31m\n", "\ud800", "a\x00b", "9" * 30, "forward", "hf://", "([", "./x:y",
]  # fmt: skip
FILES = [
    "run", "run/journal.jsonl", "watch", "empty", "w1.pt", "w*.pt", "p.npy", "p.pt", "bad.pt",
    "no/such", "/dev/null", "/proc/nothing", "new", "é" * 300,
]  # fmt: skip
MODELS = [
    nn.Linear(3, 2), nn.Identity(), nn.BatchNorm1d(3), nn.Flatten(0), nn.Linear(3, 2, bias=False),
    nn.LazyLinear(2), nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.Embedding(4, 2),
    nn.Linear(3, 2, device="meta"), nn.ParameterList([torch.ones(2)]),
]  # fmt: skip
TENSORS = [
    torch.ones(12, 3), torch.arange(36.0).reshape(12, 3).sin(), torch.ones(2, 3).long(),
    torch.ones(0, 3),
    torch.tensor(1.0), torch.full((2, 2), torch.nan), torch.ones(2, 3, dtype=torch.bool),
    torch.ones(3, 3, dtype=torch.complex64), torch.eye(3).to_sparse(), torch.ones(2, device="meta"),
    torch.arange(12),
]  # fmt: skip
KERNELS = [
    cs.Kernel(torch.eye(3)), cs.Kernel(torch.ones(3, 3)), cs.Kernel(torch.zeros(3, 3)),
    cs.Kernel(torch.eye(3), draws=torch.stack([torch.eye(3)] * 2)), cs.Kernel(torch.ones(2, 3)),
    cs.Kernel(torch.ones(2, 2, 2, 2), "full"), cs.Kernel(torch.full((3, 3), torch.nan)),
]  # fmt: skip
FEATURES = [cs.Features(torch.ones(3, 8), 8), cs.Features(torch.eye(3, 8), 2)]
ODD = [None, True, b"x", 1j, object(), [], {}, (), [None], {"a": 1}, {1, 2}, print, int, np.ones(2)]
SERIES = [
    cs.KernelSeries([0], KERNELS[:1]),
    cs.KernelSeries(
        range(12), [cs.Kernel(torch.eye(3) + 0.01 * k * torch.ones(3, 3)) for k in range(12)]
    ),
    cs.KernelSeries([1, 5], FEATURES[:1] * 2),
]


def of_type(kind):
    """Values of a type, and of the types that it holds."""
    plain, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    known = {
        int: INTEGERS, float: NUMBERS + INTEGERS, bool: [True, False], str: TEXTS + FILES,
        Path: [*map(Path, FILES)], Tensor: TENSORS, nn.Module: MODELS, cs.Kernel: KERNELS,
        cs.Features: FEATURES, cs.KernelSeries: SERIES, type(None): [None],
        torch.dtype: [torch.float64, torch.int64, torch.complex64], torch.device: ["cpu", "meta"],
        Callable: [lambda *_: MODELS[0], lambda *_: 3, lambda x: x, lambda: MODELS[0], len],
    }  # fmt: skip
    if plain in known:
        return st.sampled_from(known[plain])
    if plain is typing.Literal:
        return st.sampled_from([*inner, "other"])
    if plain is tuple:
        return st.tuples(*(of_type(one) for one in inner if one is not ...))
    if isinstance(plain, type) and issubclass(plain, Mapping):
        return st.dictionaries(of_type(inner[0]), of_type(inner[1]), max_size=2)
    if isinstance(plain, type) and issubclass(plain, Iterable):
        return st.lists(of_type(inner[0] if inner else typing.Any), max_size=12)
    if inner:
        return st.one_of([of_type(one) for one in inner])
    return ANYTHING


ANYTHING = st.sampled_from([*ODD, *TEXTS, *INTEGERS, *NUMBERS, *TENSORS, *MODELS, *KERNELS, *FILES])


def arguments_of(call, settings_type=None):
    """Arguments by name, with some of those that have defaults; each odd or of its type."""
    hints = typing.get_type_hints(call.__init__ if inspect.isclass(call) else call)
    needed, others = {}, {}
    for name, one in inspect.signature(call).parameters.items():
        kind = hints.get(name, typing.Any)
        if one.kind is one.VAR_KEYWORD:
            others |= typing.get_type_hints(settings_type or typing.get_args(kind)[0])
        elif one.default is one.empty:
            needed[name] = kind
        else:
            others[name] = kind

    def drawn(kind):
        return st.integers(0, 9).flatmap(lambda k: ANYTHING if k == 0 else of_type(kind))

    return st.fixed_dictionaries(
        {name: drawn(kind) for name, kind in needed.items()},
        optional={name: drawn(kind) for name, kind in others.items()},
    )


BOUNDED = {"steps": 1, "batch": 4, "probe": 10, "seeds": 1, "regression": 20}
"""The settings of a fine-tuning, where none is drawn, so that each ends soon."""

SLOW = {"lazy_report": 60, "verify": 60, "Watch": 80, "measure_checkpoints": 80}
"""The number of calls of functions that take longer; of the others it is 120."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder with runs, weights and probes to name, in which the calls are made."""
    here, golden = tmp_path_factory.mktemp("drawn"), Path(__file__).parent / "golden"
    here = Path(here)
    for name in ("run", "watch"):
        shutil.copytree(golden / name, here / name)
    (here / "empty").mkdir()
    for step in (1, 2):
        torch.save(nn.Linear(3, 2).state_dict(), here / f"w{step}.pt")
    (here / "bad.pt").write_bytes(b"\x80\x02")
    torch.save(torch.ones(12, 3), here / "p.pt")
    np.save(here / "p.npy", np.ones((12, 3), np.float32))
    with contextlib.chdir(here):
        yield here


QUIET = settings(
    deadline=None, database=None, derandomize=False, print_blob=True,
    suppress_health_check=[*HealthCheck],
)  # fmt: skip


@pytest.mark.parametrize("name", cs.__all__)
def test_a_public_function_raises_nothing_but_our_errors(name):
    call = getattr(cs, name)
    extra = Finetuning.__init__ if name == "lazy_report" else None
    fixed = BOUNDED if name == "lazy_report" else {}

    @seed(SEED)
    @settings(QUIET, max_examples=SLOW.get(name, 120))
    @given(arguments_of(call, extra))
    def called(arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = ""
            try:
                made = call(**(fixed | arguments))
                if isinstance(made, cs.Watch):
                    with made:
                        made.step(0)
            except ConescopeError as error:
                message = str(error)
        assert len(message.splitlines()) <= 1

    called()


def told(words):
    """Run a command in this process; return its exit status and the lines on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code
    lines = err.getvalue().splitlines()
    assert status in (0, 1, 2), words
    if status:
        assert [line for line in lines if line.startswith("conescope: error: ")] == lines[-1:], (
            lines
        )
        assert all(line.startswith("conescope: ") for line in lines), lines
    return status


WORDS = st.sampled_from(
    [*TEXTS, *FILES, *map(str, INTEGERS), *map(str, NUMBERS), "null", "[1]", "{}"]
)
COMMANDS = Commands()
for module in _COMMANDS:
    module.add(COMMANDS)


@seed(SEED)
@settings(QUIET, max_examples=40)
@given(st.sampled_from([*FIELDS]), WORDS, st.booleans())
def test_a_field_of_any_text_is_taken_or_refused_in_one_line(field, text, with_equals):
    words = [f"--{field}={text}"] if with_equals else [f"--{field}", text]
    assert told(["show", "digits", *words]) in (0, 2)


@st.composite
def command_lines(draw):
    """A command with some of its own arguments, each with one of its choices or any text."""
    name = draw(st.sampled_from([*COMMANDS.about]))
    words = name.split()
    for action in COMMANDS.parser(name)._actions:
        if "--help" in action.option_strings or not draw(st.booleans()):
            continue
        words += action.option_strings[-1:]
        if action.nargs != 0:
            words.append(draw(st.sampled_from([*(action.choices or ()), *TEXTS, "3"])))
    return words


@seed(SEED)
@settings(QUIET, max_examples=500)
@given(command_lines())
def test_options_of_any_text_are_parsed_or_refused_by_one_error(words):
    with contextlib.suppress(ConescopeError):
        COMMANDS.parse(words)


READING = ["status", "figures", "report", "cone", "compare", "verify", "export", "sweep status"]
"""Commands that neither train nor measure."""


@seed(SEED)
@settings(QUIET, max_examples=100)
@given(st.sampled_from(READING), st.lists(WORDS, max_size=3))
def test_a_whole_command_of_any_words_ends_with_one_line(name, words):
    told([*name.split(), *words])
