from typing import get_args

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import reference
from conescope.engine import entk, estimate_entk
from conescope.engine.arguments import choose_parameters, unwrapped
from conescope.errors import KernelError, ModelError
from conescope.measuring.adapt import Pool, adapt
from conescope.measuring.pooling import POOLS
from conescope.measuring.probe import describe_probe, digest


class Tagger(nn.Module):
    """Tokens and a mask, by name, to a dictionary with logits for each token."""

    def __init__(self, classes=3):
        super().__init__()
        self.model = nn.Embedding(11, 6)  # named as the adapter names the whole
        self.layers = nn.ModuleList(
            nn.ModuleDict({"attention": nn.Linear(6, 6), "mlp": nn.Linear(6, 6)}) for _ in range(2)
        )
        self.head = nn.Linear(6, classes)
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, input_ids, attention_mask, *, shift=0.0):
        hidden = self.model(input_ids)
        for layer in self.layers:
            mixed = torch.cumsum(hidden * attention_mask[..., None], dim=1)
            hidden = hidden + layer["mlp"](torch.tanh(layer["attention"](mixed)))
        return {"logits": self.scale * self.head(hidden) + shift, "hidden": hidden}


class OfNumbers(nn.Module):
    """The outputs of a model as a function of a sample's number, written down plainly."""

    def __init__(self, model, outputs):
        super().__init__()
        self.inner, self.outputs = model, outputs

    def forward(self, numbers):
        return self.outputs(self.inner, numbers)


@pytest.fixture
def tagger():
    torch.manual_seed(0)
    return Tagger().double().eval()


@pytest.fixture
def tokens():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 0]])
    ids = torch.randint(0, 11, (4, 4), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask}


def looped(model, outputs, **changes):
    """The kernel by nested loops of plain autograd: parameter → its summand."""
    parts = reference.kernel(OfNumbers(model, outputs), torch.arange(4), **changes)
    return {name.removeprefix("inner."): part for name, part in parts.items()}


def last(logits, mask):
    return logits[:, int(mask[0].nonzero().max())]


def mean(logits, mask):
    return logits[:, mask[0].bool()].mean(dim=1)


@pytest.mark.parametrize(
    ("pool", "pooled"), [(None, lambda logits, _: logits), ("last", last), ("mean", mean)]
)
def test_inputs_by_name_and_outputs_in_a_field(tagger, tokens, pool, pooled):
    def outputs(model, i):
        batch = {name: tensor[i] for name, tensor in tokens.items()}
        return pooled(model(**batch)["logits"], batch["attention_mask"])

    kernel = adapt(tagger, tokens, pool=pool).kernel("full", by_layer=True)
    parts = looped(tagger, outputs)
    torch.testing.assert_close(kernel.values, reference.total(parts), rtol=1e-10, atol=1e-12)
    attention = parts["layers.0.attention.weight"] + parts["layers.0.attention.bias"]
    torch.testing.assert_close(kernel.by_layer["layers.0.attention"], attention)
    torch.testing.assert_close(kernel.by_layer["model"], parts["model.weight"])
    assert kernel.routes.keys() == dict(tagger.named_parameters()).keys()


def test_inputs_by_place_and_constants(tagger, tokens):
    ids, mask = tokens.values()
    by_name = adapt(tagger, {**tokens, "shift": 0.5}, select="logits").kernel()
    by_place = adapt(tagger, (ids, mask), select=lambda out: out["logits"]).kernel()
    assert torch.equal(by_name.values, by_place.values)


def test_a_field_of_a_tuple_by_its_number():
    class Pair(nn.Linear):
        def forward(self, input):  # noqa: A002
            return input, super().forward(input)

    torch.manual_seed(0)
    model, x = Pair(3, 2), torch.randn(4, 3)
    expected = adapt(model, x, select=lambda out: out[1]).kernel()
    for number in (1, "1"):
        assert torch.equal(adapt(model, x, select=number).kernel().values, expected.values)
    with pytest.raises(ModelError, match="returns a tuple, without 2; say with `select`"):
        adapt(model, x, select=2).check()


def test_a_tensor_goes_to_the_engine_as_it_is():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(6, 3)
    assert torch.equal(adapt(model, x).kernel().values, entk(model, x).values)
    estimate = adapt(model, x).estimate(3, seed=1)
    assert torch.equal(estimate.draws, estimate_entk(model, x, draws=3, seed=1).draws)
    squeezed = adapt(model, x, select=lambda out: out[:, 0]).kernel()  # regression, [n]
    torch.testing.assert_close(squeezed.values, entk(model, x).values)


def test_checkpointed_layers_keep_their_gradients_whatever_the_probe():
    class Checkpointed(nn.Sequential):
        def forward(self, input):  # noqa: A002
            return self[1](checkpoint(self[0], input, use_reentrant=True))

    torch.manual_seed(0)
    model, x = Checkpointed(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(4, 3)
    expected = entk(nn.Sequential(*model), x).values
    for probe in (x, (x,), {"input": x}):
        torch.testing.assert_close(adapt(model, probe).kernel().values, expected)


def test_the_probe_is_copied(tagger, tokens):
    adapted = adapt(tagger, tokens)
    before = adapted.kernel().values
    tokens["input_ids"].zero_()
    assert torch.equal(adapted.kernel().values, before)


@pytest.mark.parametrize(
    ("params", "chosen"),
    [
        ("head", ["head.weight", "head.bias"]),
        ("layers.*.attention.weight", [f"layers.{i}.attention.weight" for i in (0, 1)]),
        (["scale", "*.bias"], ["scale", *[f"layers.{i}.{m}.bias" for i in (0, 1)
                                          for m in ("attention", "mlp")], "head.bias"]),
        ("model", ["model.weight"]),
    ],
)  # fmt: skip
def test_parameters_by_pattern(tagger, tokens, params, chosen):
    assert list(choose_parameters(tagger, params)) == [
        n for n, _ in tagger.named_parameters() if n in chosen
    ]
    kernel = adapt(tagger, tokens, params=params).kernel(by_layer=True)
    parts = adapt(tagger, tokens, params=chosen).kernel(by_layer=True)
    assert torch.equal(kernel.values, parts.values)
    assert kernel.routes.keys() == set(chosen)


def test_parameters_of_the_model_itself_are_a_layer_with_a_name():
    class Affine(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(2))
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return self.inner(x) * self.scale + self.shift

    model, x = Affine(), torch.randn(4, 3)
    kernel = adapt(model, x).kernel(by_layer=True)
    apart = entk(model, x, by_layer=True).by_layer
    assert kernel.by_layer.keys() == {"(model)", "inner"}
    torch.testing.assert_close(kernel.by_layer["(model)"], apart["scale"] + apart["shift"])


def test_frozen_parameters_are_left_out_unless_named(tagger):
    for p in tagger.model.parameters():
        p.requires_grad_(False)
    assert "model.weight" not in choose_parameters(tagger)
    assert list(choose_parameters(tagger, "model")) == ["model.weight"]


def test_wrappers_are_seen_through(tagger, tokens):
    for wrapped in (
        nn.DataParallel(tagger),
        torch.compile(tagger),
        torch.compile(nn.DataParallel(tagger)),
    ):
        assert unwrapped(wrapped) is tagger
        assert torch.equal(
            adapt(wrapped, tokens).kernel().values, adapt(tagger, tokens).kernel().values
        )


def test_a_probe_is_described(tokens):
    assert describe_probe(torch.zeros(5, 3)) == "[5, 3] float32"
    assert describe_probe({**tokens, "shift": 0.5}) == (
        "input_ids [4, 4] int64, attention_mask [4, 4] int64, shift 0.5"
    )
    assert describe_probe((torch.zeros(2), None)) == "0 [2] float32, 1 None"


def test_a_digest_tells_probes_apart(tokens):
    ids, mask = tokens.values()
    others = [
        tokens,
        (ids, mask),
        ids,
        ids + 1,
        ids.int(),
        ids.reshape(2, 8),
        {**tokens, "shift": 1},
    ]
    assert len({digest(probe) for probe in others}) == len(others)
    assert digest({name: t.clone() for name, t in tokens.items()}) == digest(tokens)


def sharded(model):
    model.head.weight.placements = ()  # as torch's DTensor has
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ReLU(), "no parameters"),
        (lambda: nn.LazyLinear(3), "is lazy and has no shape yet; run a batch first"),
        (lambda: nn.Linear(3, 3, device="meta"), "is on the meta device"),
        (lambda: nn.Linear(3, 3).requires_grad_(False), "unfreeze some"),
        (lambda: sharded(Tagger()), "'head.weight' is sharded over processes; gather"),
    ],
)
def test_models_that_cannot_be_measured(make, message):
    with pytest.raises(ModelError, match=message):
        adapt(make(), torch.randn(4, 3))


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({}, "holds no samples"),
        (torch.tensor(1.0), "holds no samples"),
        (torch.zeros(0, 3), "holds no samples"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(4, 2)}, "a 3, b 4"),
        ({"a": torch.full((3, 2), torch.nan)}, "a holds NaN"),
    ],
)
def test_probes_that_are_none(tagger, probe, message):
    with pytest.raises(ModelError, match=message):
        adapt(tagger, probe)


def test_a_pool_is_one_of_the_known(tagger, tokens):
    assert {*get_args(Pool)} == {*POOLS}
    with pytest.raises(KernelError, match="pool is 'max', but must be 'last' or 'mean'"):
        adapt(tagger, tokens, pool="max")


def test_unknown_parameters_name_the_nearest(tagger, tokens):
    with pytest.raises(ModelError, match=r"names 'haed', which .* did you mean 'head'"):
        adapt(tagger, tokens, params="haed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": torch.zeros(4, 5)}, r"rejects the probe, \[4, 5\] float32"),
        (
            {"probe": {"input_ids": torch.zeros(4, 4, dtype=torch.int64)}},
            "rejects the probe, input_ids",
        ),
        ({"select": "missing"}, "with logits, hidden, without 'missing'; say with `select`"),
        ({"select": lambda out: None}, "gives a NoneType, not a tensor"),
        ({"select": lambda out: out["logits"].sum()}, r"outputs of shape \(\)"),
        ({"select": lambda out: out["logits"].flatten()}, r"outputs of shape \(24,\)"),
        ({"select": lambda out: out["logits"][:, 0], "pool": "last"}, "leave it out"),
    ],
)
def test_a_trial_finds_what_does_not_fit(tagger, tokens, changes, message):
    adapt(tagger, tokens).check()
    with pytest.raises(ModelError, match=message):
        adapt(tagger, **({"probe": tokens} | changes)).check()
