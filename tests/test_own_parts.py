"""A user's own network and data in a recipe: run, stopped and gone on with, switched, measured."""

import re
import sys
import textwrap
from itertools import count

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from conescope.cli import main
from conescope.errors import DamageWarning, DataError, ModelError, RecipeError
from conescope.experiments.experiment import Experiment
from conescope.experiments.session import run_experiment
from conescope.experiments.stored import load_run
from conescope.runs.store import Folder
from conescope.runs.user_code import code_digest
from conescope.training.data.dataset import Dataset, Split, _load, load_data
from conescope.training.data.given import as_dataset
from conescope.training.models import build_model, check_network
from conescope.training.recipe_fields import DataRecipe, ModelRecipe
from conescope.training.recipe_reading import load_recipe, recipe_from_dict

CODE = '''
import torch
from torch import nn


class Net(nn.Sequential):
    """A perceptron.

    Args:
        shape: of one sample.
        classes: number of logits.
        depth: number of hidden layers.
        activation: what follows each.
    """

    def __init__(self, shape, classes, depth: int = 1, activation: str = "tanh"):
        sizes = [shape[0], *[12] * depth]
        layers = []
        for before, after in zip(sizes, sizes[1:]):
            layers += [nn.Linear(before, after), {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]()]
        super().__init__(*layers, nn.Linear(sizes[-1], classes))


def tokens(classes, vocabulary=11):
    return nn.Sequential(nn.Embedding(vocabulary, 6), nn.Flatten(), nn.Linear(5 * 6, classes))


NETWORK = nn.Linear(2, 2)


def named(name="x"):
    return None


def lazy(classes):
    return nn.Sequential(nn.LazyLinear(7), nn.LazyBatchNorm1d(), nn.Linear(7, classes))


def blobs(noise: float = 0.3, classes=3):
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(150) % classes
    inputs = torch.randn(classes, 4, generator=generator)[labels]
    inputs = inputs + noise * torch.randn(150, 4, generator=generator)
    return {"train": (inputs[:90], labels[:90]), "test": (inputs[90:], labels[90:])}


def sentences(path="none"):
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randint(0, 11, (140, 5), generator=generator)
    labels = (inputs.sum(1) > 25).long()
    return (inputs[:100], labels[:100]), (inputs[100:], labels[100:])
'''

TINY = [
    "--training.steps=30", "--training.batch_size=10", "--training.evaluate=0, every 10",
    "--probe.size=12", "--kernel.when=0, every 3", "--snapshots.keep=0, every 10",
    "--snapshots.resume=every 7", "--optimizer.lr=0.1", "--optimizer.momentum=0", "--threads=1",
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a module of the user's own, in which the commands run."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    _load.cache_clear()
    return name


def words(place, *more, model="Net", data="blobs"):
    return [f"--model.name={place}:{model}", f"--data.name={place}:{data}", *TINY, *more]


def test_every_command_works_on_them(place, tmp_path, capsys):
    more = ["--model.depth", "2", "--data.noise=0.2"]
    assert main(["run", "digits", *words(place, *more), "--out", "one"]) == 0
    assert main(["run", "digits", *words(place, *more, "--seed=1"), "--out", "two"]) == 0
    assert main(["switch", "one", "--at", "0,10"]) == 0
    for command in (["status", "one"], ["figures", "one"], ["report", "one"], ["cone", "one"],
                    ["compare", "one", "two"], ["plan", "digits", *words(place, *more)],
                    ["measure", "one", "--out", "again", "--outputs", "sum"]):  # fmt: skip
        assert main(command) == 0, command
    run = load_run("one")
    assert run.recipe.model.options == {"depth": 2}
    assert run.recipe.data.options == {"noise": 0.2}
    assert run.labels.bincount().tolist() == [4, 4, 4]
    capsys.readouterr()
    assert main(["show", "digits", *words(place, *more)]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["model"]["depth"] == 2
    assert "activation" in shown
    (tmp_path / "mine.yaml").write_text(shown)
    assert load_recipe("mine.yaml") == recipe_from_dict(
        run.recipe.to_dict() | {"name": "digits"}, "test", []
    )
    with pytest.raises(SystemExit):
        main(["run", "digits", *words(place), "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert "--model.depth DEPTH number of hidden layers" in help_text
    assert "--optimizer.nesterov" in help_text


def test_a_stored_run_is_read_without_its_code(place, tmp_path):
    main(["run", "digits", *words(place, "--model.depth=2"), "--out", "one"])
    (tmp_path / f"{place}.py").write_text("raise RuntimeError('imported')")
    del sys.modules[place]
    run = load_run("one")
    assert run.recipe.model.options == {"depth": 2}
    assert main(["status", "one"]) == main(["report", "one"]) == main(["cone", "one"]) == 0
    with pytest.raises(RuntimeError, match="imported"):
        main(["run", "digits", *words(place, "--model.depth=2"), "--out", "one"])


@pytest.mark.parametrize(("model", "data"), [("tokens", "sentences"), ("lazy", "blobs")])
def test_tokens_and_lazy_layers_go_on_to_the_same_bits(place, tmp_path, model, data):
    recipe = load_recipe("digits", words(place, model=model, data=data))
    run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count(1)
    while not run_experiment(
        recipe, tmp_path / "stopped", command="test", should_stop=lambda: next(asked) % 8 == 0
    ):
        pass
    whole, stopped = ({e.values["file"]: e.values["sha256"] for e in Folder(tmp_path / n).files(k)}
                      for n in ("whole", "stopped") for k in ("kernel",))  # fmt: skip
    assert len(whole) == 11
    assert whole == stopped


def test_changed_code_is_said_when_a_run_goes_on(place, tmp_path):
    recipe = load_recipe("digits", words(place))
    run_experiment(recipe, tmp_path / "one", command="test", should_stop=lambda: True)
    environment = Folder(tmp_path / "one").entries("session")[0].values["environment"]
    assert len(environment[f"code of {place}:Net"]) == 64
    with (tmp_path / f"{place}.py").open("a") as file:
        file.write("# changed\n")
    with pytest.warns(DamageWarning, match=rf"was begun with another code of {place}:blobs, code"):
        run_experiment(recipe, tmp_path / "one", command="test")


def test_what_an_own_part_does_not_take_is_refused(place):
    for more, message in (
        (["--model.dept=2"], rf"did you mean model\.depth\? {place}:Net has the options depth, a"),
        (["--model.depth=two"], r"model\.depth takes a whole number or null, not 'two'"),
        (["--model.width=2"], rf"model\.width is 2\.0, and {place}:Net takes none"),
        (["--data.noize=2"], r"did you mean data\.noise\?"),
        (["--model.name=nowhere:Net"], "no module 'nowhere' for the model.name"),
        ([f"--model.name={place}:Nett"], "has no 'Nett'; did you mean 'Net'"),
        ([f"--model.name={place}:torch"], "is a module, no class or function"),
        ([f"--model.name={place}:NETWORK"], "is a network; name the class or a function"),
        ([f"--data.name={place}:named"], "has an argument name, which is the name of a field"),
        (["--model.name=Net"], r"model\.name takes cnn or .* or package\.module:name, not 'Net'"),
        (["--model.name=a b:Net"], "is not of the form package.module:callable"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe("digits", words(place, *more))
    with pytest.raises(DataError, match=r"data\.path is x, and .*:blobs takes none"):
        Experiment(load_recipe("digits", words(place, "--data.path=x")))
    with pytest.raises(RecipeError, match=r"flip-crop is for images .* samples have shape \[4\]"):
        Experiment(load_recipe("digits", words(place, "--data.augmentation=flip-crop")))


def test_what_an_own_loader_raises_comes_through(place, tmp_path):
    (tmp_path / f"{place}.py").write_text(
        textwrap.dedent("""
        def fails():
            raise KeyError("mine")
        def draws():
            import torch
            return [(torch.rand(20, 3), torch.arange(20) % 2)] * 2
        """)
    )
    with pytest.raises(KeyError, match="mine"):
        load_data(DataRecipe(f"{place}:fails"))
    first = load_data(DataRecipe(f"{place}:draws")).train.inputs
    _load.cache_clear()
    assert torch.equal(first, load_data(DataRecipe(f"{place}:draws")).train.inputs)


class Items(TorchDataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 1])


@pytest.mark.parametrize(
    "found",
    [
        {"train": (X, Y), "test": (X[:2], Y[:2])},
        ((X, Y), (X[:2], Y[:2])),
        [(X, Y.double()), (X[:2], Y[:2].to(torch.uint8))],
        (TensorDataset(X, Y), TensorDataset(X[:2], Y[:2])),
        (Items([(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)]),
         (X[:2].numpy(), Y[:2].numpy())),
        (Split(X, Y), Split(X[:2], Y[:2])),
    ],
)  # fmt: skip
def test_splits_of_every_kind_are_the_same_tensors(found):
    data = as_dataset(found, "mine")
    assert torch.equal(data.train.inputs, X)
    assert torch.equal(data.train.labels, Y)
    assert torch.equal(data.test.inputs, X[:2])
    assert data.train.labels.dtype == data.test.labels.dtype == torch.int64
    assert data.classes == 3


IMAGES = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, 'mine returns a NoneType; it has to return "train" and "test"'),
        ({"train": (X, Y)}, "returns a dict with 'train'; it has to"),
        ((X, Y, X), "returns a tuple; it has to"),
        ((X, Y), "mine, train: there is a Tensor; it has to"),
        ((Stream(), (X, Y)), "mine, train: a Stream is no map-style data set"),
        ((Items([X[0]]), (X, Y)), "train: item 0 is a Tensor, not"),
        ((Items([(X[0], "cat")]), (X, Y)), "item 0: there is a str instead of a tensor or"),
        ((Items([(X[0], 0), (X[0, :2], 0)]), (X, Y)), r"item 1 has an input \[2\]"),
        ((Items([]), (X, Y)), "mine, train: there are no samples"),
        (((X[:0], Y[:0]), (X, Y)), "mine, train: there are no samples"),
        (((X, Y), (X[:3], Y)), "mine, test: there are 3 inputs, but 6 labels"),
        (((X, Y), (X[:, :2], Y)), r"training inputs are \[6, 4\] .* test inputs \[6, 2\]"),
        (((X, Y), (X.double(), Y)), "both need samples of one shape and type"),
        (((X / 0, Y), (X, Y)), "mine, train: inputs hold NaN or infinite"),
        (((X, Y - 1), (X, Y)), "train: labels are whole numbers from 0, and one is -1"),
        (((X, Y + 0.5), (X, Y)), "train: labels are whole numbers from 0, and some are not"),
        (((X, Y / torch.zeros(6)), (X, Y)), "labels are whole numbers from 0, and some are not"),
        (((X, X), (X, Y)), "labels"),
        (((IMAGES[:, 0, 0], Y), (X, Y)), "of torch.uint8 are images"),
        (((X > 0, Y), (X > 0, Y)), "whole or floating-point numbers, not torch.bool"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_is_one_clear_error(found, message):
    with pytest.raises(DataError, match=message) as caught:
        as_dataset(found, "mine")
    assert "\n" not in str(caught.value)


def test_a_data_set_says_how_many_classes_it_has():
    split = Split(X, Y)
    assert Dataset("mine", split, split, classes=7).classes == 7
    with pytest.raises(DataError, match="labels must lie in 0 … 1, and one is 2"):
        Dataset("mine", split, split, classes=2)


class Odd(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.ones(4, 3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.make(x @ self.weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: y[:, :2], r"gives \[2, 2\] for inputs \[2, 4\] .* logits \[2, 3\]"),
        (lambda y: {"logits": y}, "gives a dict .* has to give one tensor"),
        (lambda y: y.round().long(), "gives torch.int64; logits are floating-point"),
        (lambda y: y / 0, "gives NaN or infinite logits"),
        (lambda y: y @ y, r"fails for inputs \[2, 4\] of torch.float32: RuntimeError: mat1 and"),
    ],
)
def test_a_network_without_logits_is_one_clear_error(make, message):
    with pytest.raises(ModelError, match=message):
        check_network(Odd(make), torch.ones(2, 4), 3, "mine")


def test_the_check_leaves_a_network_as_it_was():
    model = nn.Sequential(Odd(lambda y: y), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs, random = torch.randn(2, 4), torch.get_rng_state()
    check_network(model, inputs, 3, "mine")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True]
    assert torch.equal(random, torch.get_rng_state())


def test_a_build_that_gives_no_module_is_refused(place, tmp_path):
    (tmp_path / f"{place}.py").write_text("def build(classes):\n    return classes\n")
    with pytest.raises(ModelError, match=rf"{place}:build gives a int, not a torch\.nn\.Module"):
        build_model(ModelRecipe(f"{place}:build"), (4,), 3)


def module(place, tmp_path, text):
    """Put other code into the user's module, which nothing has imported yet."""
    (tmp_path / f"{place}.py").write_text("import torch\nfrom torch import nn\n" + text)


TIED = """
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, classes)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(self.b(self.a(x).tanh()))
"""
NOISY = """
import random
import numpy as np
class Net(nn.Linear):
    def __init__(self, classes):
        super().__init__(4, classes)

    def forward(self, x):
        noise = random.random() + np.random.rand() if self.training else 0
        return super().forward(x + noise)
"""


@pytest.mark.parametrize("text", [TIED, NOISY], ids=["tied", "noise"])
def test_tied_weights_and_numpys_noise_go_on_to_the_same_bits(place, tmp_path, text):
    own = CODE[CODE.index("def blobs") :]
    module(place, tmp_path, text + own)
    recipe = load_recipe("digits", words(place))
    run_experiment(recipe, tmp_path / "whole", command="test")
    asked = count(1)
    while not run_experiment(
        recipe, tmp_path / "stopped", command="test", should_stop=lambda: next(asked) % 8 == 0
    ):
        pass
    whole, stopped = ({e.values["file"]: e.values["sha256"] for e in Folder(tmp_path / n).files(k)}
                      for n in ("whole", "stopped") for k in ("kernel",))  # fmt: skip
    assert whole == stopped


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(0)", "exits when it is imported"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])", "exits when it is imp"),
        ("def Net():\n    raise SystemExit(0)", "Net exits Python"),
        ("def Net(shape, /, classes): pass", "takes shape by position only"),
    ],
)
def test_code_that_exits_or_takes_no_names_is_a_clear_error(place, tmp_path, capsys, text, message):
    module(place, tmp_path, text)
    assert main(["run", "digits", f"--model.name={place}:Net", *TINY]) == 2
    assert message in capsys.readouterr().err


def test_what_a_module_prints_is_no_part_of_a_recipe(place, tmp_path, capsys):
    module(place, tmp_path, "print('hello')\ndef Net(classes): pass")
    assert main(["show", "digits", f"--model.name={place}:Net"]) == 0
    said = capsys.readouterr()
    assert "hello" in said.err
    assert yaml.safe_load(said.out)["model"]["name"] == f"{place}:Net"


def test_a_module_of_the_same_name_from_elsewhere_is_not_taken_for_it(place, tmp_path, monkeypatch):
    load_recipe("digits", words(place))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in (place, "code"):
        (tmp_path / "elsewhere" / f"{name}.py").write_text("def Net(classes): pass")
        with pytest.raises(RecipeError, match=rf"elsewhere/{name}\.py cannot be imported"):
            load_recipe("digits", [f"--model.name={name}:Net"])


def test_code_that_comes_from_no_file_has_no_digest(place, tmp_path):
    module(place, tmp_path, "exec('def made(classes): pass', {'__name__': 'none'}, globals())")
    assert code_digest(f"{place}:made") == "no file"


def test_help_lists_options_that_a_recipe_needs_and_those_beside_a_file(place, tmp_path, capsys):
    meaning = '    """Net.\n\n    Args:\n        depth: 50 % more.\n    """'
    module(place, tmp_path, f"def Net(classes, depth: int):\n{meaning}")
    (tmp_path / "mine.yaml").write_text(f"model: {{name: '{place}:Net'}}")
    for asked in (["digits", f"--model.name={place}:Net"], ["mine.yaml", "--model.depth=3"]):
        with pytest.raises(SystemExit):
            main(["run", *asked, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "--model.depth DEPTH 50 % more. (required)" in text
    assert main(["plan", "mine.yaml"]) == 2
    assert f"model.depth: {place}:Net needs a value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (".nan", r"model\.depth cannot be .*; an option is a finite"),
        (".inf", r"model\.depth cannot be .*; an option is a finite"),
        ("[[.inf]]", r"model\.depth cannot be .*; an option is a finite"),
        ("{1: 2}", r"model\.depth cannot be .*; an option is a finite"),
        ("!!binary aGVsbG8=", r"it has the tag .*; write plain values \(line 1\)"),
        ("!!set {a}", r"it has the tag .*; write plain values \(line 1\)"),
    ],
)
def test_an_option_that_a_journal_does_not_give_back_is_refused(place, tmp_path, value, said):
    module(place, tmp_path, "def Net(classes, depth=None): pass")
    (tmp_path / "mine.yaml").write_text(f"model: {{name: '{place}:Net', depth: {value}}}")
    with pytest.raises(RecipeError, match=said):
        load_recipe("mine.yaml")


def test_a_date_is_text_for_an_option(place, tmp_path):
    module(place, tmp_path, "def Net(classes, depth=None): pass")
    (tmp_path / "mine.yaml").write_text(f"model: {{name: '{place}:Net', depth: 2024-01-01}}")
    assert load_recipe("mine.yaml").model.options["depth"] == "2024-01-01"


def test_an_empty_mapping_is_an_option_that_is_given(place, tmp_path):
    module(place, tmp_path, "def Net(classes, depth: dict = None, **more): pass")
    name = f"--model.name={place}:Net"
    ids = {load_recipe("digits", [name, *more]).id for more in ([], ["--model.depth={}"])}
    assert len(ids) == 2
    with pytest.raises(RecipeError, match=r"unknown field model\.a-b"):
        load_recipe("digits", [name, "--model.a-b=1"])


ONE = "super().__init__(); self.l = nn.Linear(4, classes)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def Net(classes): return nn.Sequential(nn.BatchNorm2d(4))",
         r"fails for inputs \[1, 4\] .* ValueError: expected 4D"),
        ("class Net(nn.Bilinear):\n"
         "    def __init__(self, classes): super().__init__(4, 4, classes)",
         "missing 1 required positional argument"),
        (f"class Net(nn.Module):\n    def __init__(self, classes): {ONE}\n"
         "    def forward(self, x): return (self.l(x), 0) if self.training else self.l(x)",
         "in training mode gives a tuple"),
        ("def Net(classes): return nn.Linear(4, classes).requires_grad_(False)",
         "depend on no parameter that requires a gradient"),
        ("def Net(classes): return nn.Sequential(nn.Linear(4, classes), nn.BatchNorm1d(classes))",
         r"in training mode fails for inputs \[1, 4\].*more than 1 value"),
        ("class Net(nn.Linear):\n    def __init__(self, classes): super().__init__(4, classes)\n"
         "    def get_extra_state(self): return {}\n    def set_extra_state(self, state): pass",
         "state '_extra_state' is a dict; a snapshot holds tensors"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_trained_here_is_one_clear_error(
    place, tmp_path, capsys, text, message
):
    module(place, tmp_path, text + "\n" + CODE[CODE.index("def blobs") :])
    asked = words(place, "--training.batch_size=89", "--kernel.when=never")
    assert main(["run", "digits", *asked, "--out", "one"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


@pytest.mark.parametrize("shape", ["None", "4", "property(lambda self: 4)"])
def test_an_input_shape_that_is_no_shape_says_nothing(place, tmp_path, shape):
    text = f"class Net(nn.Linear):\n    input_shape = {shape}\n    def __init__(self, classes):\n"
    module(place, tmp_path, text + "        super().__init__(4, classes)")
    assert build_model(ModelRecipe(f"{place}:Net"), (4,), 3).weight.shape == (3, 4)


def test_gradients_that_a_module_turns_off_are_on_in_training(place, tmp_path):
    module(place, tmp_path, CODE + "\ntorch.set_grad_enabled(False)")
    try:
        assert run_experiment(load_recipe("digits", words(place)), tmp_path / "one", command="t")
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (((X.numpy(), np.array(["a"] * 6)), (X, Y)), "an array of <U1 instead of numbers"),
        (((X.numpy().astype(object), Y), (X, Y)), "an array of object instead of numbers"),
        (((X.numpy().astype(np.longdouble), Y), (X, Y)), "can't convert np.ndarray of type"),
        (((X, Y + 2**62), (X, Y)), "the largest label is .* but there are only 12 labels"),
        (((X.to_sparse(), Y), (X, Y)), "plain dense tensors, not sparse"),
        (((X.to("meta"), Y), (X, Y)), "plain dense tensors"),
        (((X.to(torch.float8_e4m3fn), Y), (X, Y)), "floating-point numbers, not torch.float8"),
        (((X[:, :0], Y), (X, Y)), "the samples hold no numbers"),
        (((IMAGES[:, :0], Y), (X, Y)), "the samples hold no numbers"),
    ],
)
def test_what_torch_cannot_hold_or_count_is_one_clear_error(found, message):
    with pytest.raises(DataError, match=message) as caught:
        as_dataset(found, "mine")
    assert "\n" not in str(caught.value)


def test_arrays_of_any_layout_are_taken():
    labels = Y.numpy().astype(np.uint16)
    for array in (X.numpy().astype(">f4"), X.numpy()[::-1][::-1], X.numpy()[:, ::-1][:, ::-1]):
        data = as_dataset([(array, labels), (array, labels.astype(">u8"))], "mine")
        assert torch.equal(data.train.inputs, X)
        assert torch.equal(data.test.labels, Y)
    assert (
        not Dataset("mine", *[Split(X.clone().requires_grad_() * 2, Y)] * 2, 3)
        .to("cpu")
        .train.inputs.requires_grad
    )


@pytest.mark.parametrize("classes", ["3", 3.0, True, np.int64(3)])
def test_a_data_set_that_counts_its_classes_wrongly_is_refused(classes):
    split = Split(X, Y)
    with pytest.raises(DataError, match="classes has to be an int"):
        Dataset("mine", split, split, classes)
    with pytest.raises(DataError, match="of the class Split"):
        Dataset("mine", (X, Y), (X, Y), 3)
