"""Linearised training against its definition, its closed form, and its laws."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from conescope.engine import entk
from conescope.errors import ModelError
from conescope.measuring.adapt import adapt
from conescope.measuring.undisturbed import recalibrated
from conescope.tangent import linearize
from conescope.training.models.lenet import LeNet5
from conescope.training.models.resnet import ResNet20
from conescope.training.models.vgg import VGG16
from problems import PROBLEMS, Apply, Problem


def _trained_statistics(model, x):
    """Move BatchNorm's running statistics, as some training would."""
    with torch.no_grad():
        for _ in range(3):
            model.train()(x)
    return model


def _network(name):
    torch.manual_seed(0)
    color = torch.randn(6, 3, 32, 32)
    if name == "LeNet-5":
        return LeNet5(0.5), torch.randn(6, 1, 28, 28)
    if name == "ResNet-20, LayerNorm":
        return ResNet20(0.25, norm="layer"), color
    networks = {
        "ResNet-20 A": lambda: ResNet20(0.25),
        "ResNet-20 B": lambda: ResNet20(0.25, shortcut="B"),
        "VGG-16 large": lambda: VGG16(0.07),
        "VGG-16 small": lambda: VGG16(0.07, head="small"),
    }
    return _trained_statistics(networks[name](), color), color


NETWORKS = [
    "LeNet-5",
    "ResNet-20 A",
    "ResNet-20 B",
    "ResNet-20, LayerNorm",
    "VGG-16 large",
    "VGG-16 small",
]

# torch has neither the forward nor the second derivative of embedding_bag
BAGS = ("bag of tokens, sum", "bag of tokens, mean", "bag of tokens, max", "weighted bag")
# Operations without the derivative that the route needs, or with a wrong one
REFUSED = {
    ("weight norm", "forward"),
    ("custom function", "forward"),
    ("padded embedding", "forward"),
    ("batch norm of a changed gradient", "forward"),
    ("checkpoint", "forward"),
    ("checkpoint", "reverse"),
    ("positions", "forward"),
    ("covered and not", "forward"),
    *((name, route) for name in BAGS for route in ("forward", "reverse")),
}
ROWS = [
    pytest.param(problem, route, id=f"{problem.name}, {route}")
    for problem in PROBLEMS
    for route in ("forward", "reverse")
    if problem.name != "re-entrant checkpoint" and (problem.name, route) not in REFUSED
]


def displace(linearized, scale=1.0):
    """θ ← θ + scale · (random direction); returns the direction."""
    generator = torch.Generator().manual_seed(1)
    direction = {}
    with torch.no_grad():
        for name, p in linearized.named_parameters():
            if p.requires_grad:
                step = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
                p += scale * step
                direction[name] = scale * step
    return direction


def reference(model, x, direction):
    """Return the output in its graph, the weights, and J·direction by two backward passes."""
    model = copy.deepcopy(model).eval()
    weights = {name: p for name, p in model.named_parameters() if name in direction}
    with sdpa_kernel(SDPBackend.MATH):
        output = functional_call(model, weights, (x,))
    u = torch.zeros_like(output, requires_grad=True)
    transposed = torch.autograd.grad(
        output, weights.values(), u, create_graph=True, materialize_grads=True
    )
    (derivative,) = torch.autograd.grad(
        transposed, u, list(direction.values()), retain_graph=True, materialize_grads=True
    )
    return output, derivative, weights


def assert_close(found, expected, tolerance):
    """Fail unless tensors agree relative to the norm of the whole."""
    assert torch.norm(found - expected) <= tolerance * torch.norm(expected)


def assert_is_the_taylor_model(model, x, route, tolerance, autocast=None):
    linearized = linearize(model, route)
    direction = displace(linearized)
    lowered = autocast is not None
    with torch.autocast("cpu", autocast, enabled=lowered and linearized.one_pass):
        output, derivative, weights = reference(model, x, direction)
    with torch.autocast("cpu", autocast, enabled=lowered):
        found = linearized(x)
    assert_close(found, output + derivative, tolerance)
    cotangent = torch.cos(torch.arange(found.numel())).to(found).view_as(found)
    expected = torch.autograd.grad(
        output, weights.values(), cotangent, materialize_grads=True, allow_unused=True
    )
    found.backward(cotangent)
    gradients = [linearized.get_parameter(name).grad for name in weights]
    pairs = zip(gradients, expected, strict=True)
    filled = [torch.zeros_like(e) if g is None else g for g, e in pairs]
    assert_close(_one_vector(filled), _one_vector(expected), tolerance)


def _one_vector(tensors):
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize(("problem", "route"), ROWS)
def test_value_and_gradient_are_those_of_the_definition(problem: Problem, route):
    assert_is_the_taylor_model(problem.build(), problem.samples(), route, 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_paper_s_networks_are_exact_in_one_pass(name, dtype):
    model, x = _network(name)
    model, x = model.to(dtype), x.to(dtype)
    assert linearize(model).one_pass
    assert_is_the_taylor_model(model, x, "forward", 1e-12 if dtype == torch.float64 else 1e-6)


class _Branching(nn.Module):
    """A network whose forward pass looks at its input, so that its operations cannot be traced."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x if x.sum() < torch.inf else -x)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("route", ["one pass", "forward", "reverse"])
def test_autocast_lowers_the_one_pass_to_within_rounding_and_no_other(name, route):
    model, x = _network(name)
    if route == "one pass":
        assert_is_the_taylor_model(model, x, "forward", 0.05, torch.bfloat16)
    else:
        assert_is_the_taylor_model(_Branching(model), x, route, 1e-6, torch.bfloat16)


@pytest.mark.parametrize("route", ["forward", "reverse"])
@pytest.mark.parametrize("traced", [True, False])
def test_under_autocast_inputs_may_have_a_lower_type_than_the_weights(route, traced):
    model, x = _network("ResNet-20 A")
    low = x.bfloat16()  # such as the output of a layer that autocast has lowered
    linearized = linearize(model if traced else _Branching(model), route)
    displace(linearized)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linearized(low), linearized(low.float()))


def test_group_norm_is_linearised_in_channels_last_memory():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 2))
    model.to(memory_format=torch.channels_last)
    x = torch.randn(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert linearize(model).one_pass
    assert_is_the_taylor_model(model, x, "forward", 1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_at_the_linearization_point_it_is_the_network(name):
    model, x = _network(name)
    linearized = linearize(model).train()
    assert torch.equal(linearized(x), model.eval()(x))


def test_the_derivative_is_linear_in_the_weights():
    model, x = _network("ResNet-20 B")
    model, x = model.double(), x.double()
    outputs = []
    for scale in (0.0, 1.0, -3.0, 1000.0):
        linearized = linearize(model)
        displace(linearized, scale)
        outputs.append(linearized(x).detach())
    for scale, output in zip((-3.0, 1000.0), outputs[2:], strict=True):
        assert_close(output, outputs[0] + scale * (outputs[1] - outputs[0]), 1e-11)


def _small_cnn():
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    ).double()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    return _trained_statistics(model, x), x


def test_gradient_descent_follows_the_closed_form():
    """f_t − y = (I − ηK)ᵗ (f_0 − y) for the loss ½‖f − y‖²."""
    model, x = _small_cnn()
    K = entk(model.eval(), x, outputs="full").values.reshape(10, 10)
    y = torch.randn(5, 2, dtype=torch.float64)
    lr, steps = float(1 / torch.linalg.eigvalsh(K).max()), 200
    linearized = linearize(model)
    optimizer = torch.optim.SGD(linearized.parameters(), lr)
    start = linearized(x).detach() - y
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (linearized(x) - y).square().sum()).backward()
        optimizer.step()
    decay = torch.linalg.matrix_power(torch.eye(10, dtype=torch.float64) - lr * K, steps)
    expected = (decay @ start.flatten()).view(5, 2)
    torch.testing.assert_close(linearized(x) - y, expected, rtol=1e-10, atol=1e-12)


def test_its_kernel_is_the_network_s_and_stays():
    model, x = _small_cnn()
    expected = entk(model.eval(), x, outputs="full").values
    linearized = linearize(model).eval()
    torch.testing.assert_close(entk(linearized, x, outputs="full").values, expected)
    displace(linearized)
    torch.testing.assert_close(entk(linearized, x, outputs="full").values, expected)


def test_an_ordinary_training_step_moves_nothing_but_the_weights():
    model, x = _network("VGG-16 large")  # has BatchNorm and dropout
    F.cross_entropy(model(x), torch.arange(6)).backward()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    linearized = linearize(model)
    state = {name: t.clone() for name, t in linearized.state_dict().items()}
    random = torch.get_rng_state()
    optimizer = torch.optim.AdamW(linearized.parameters())
    F.cross_entropy(linearized.train()(x), torch.arange(6)).backward()
    optimizer.step()
    assert torch.equal(random, torch.get_rng_state())
    weights = {name for name, _ in model.named_parameters()}
    changed = {n for n, t in linearized.state_dict().items() if not torch.equal(t, state[n])}
    assert changed == weights
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert model.training


def test_recalibrated_statistics_are_frozen_in_turn():
    model, x = _network("ResNet-20 A")
    fresh = recalibrated(model, torch.randn(32, 3, 32, 32))
    assert torch.equal(linearize(fresh)(x), fresh(x))


def test_its_state_is_the_network_s_and_comes_back():
    model, x = _network("ResNet-20 A")
    linearized = linearize(model)
    displace(linearized, 0.01)
    state = linearized.state_dict()
    names = {name for name in state if not name.startswith("linearization_point.")}
    assert names == set(model.state_dict())
    other = linearize(_network("ResNet-20 A")[0].apply(_scramble))
    other.load_state_dict(state)
    assert torch.equal(other(x), linearized(x))
    missing, extra = model.load_state_dict(state, strict=False)
    assert not missing
    assert all(name.startswith("linearization_point.") for name in extra)
    assert all(torch.equal(p, linearized.get_parameter(n)) for n, p in model.named_parameters())


def _scramble(module):
    for p in module.parameters(recurse=False):
        nn.init.normal_(p, std=0.1)


def test_it_can_be_copied_and_moved():
    model, x = _small_cnn()
    linearized = linearize(model.float())
    displace(linearized)
    moved = copy.deepcopy(linearized).double()
    assert moved(x).dtype == torch.float64
    assert_close(moved(x).float(), linearized(x.float()), 1e-5)


def test_frozen_weights_stay_and_have_no_part_in_the_derivative():
    model, x = _small_cnn()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    assert_is_the_taylor_model(model, x, "forward", 1e-12)
    linearized = linearize(model)
    linearized(x).sum().backward()
    assert linearized.get_parameter("0.weight").grad is None
    assert not linearized.get_parameter("0.weight").requires_grad


def test_tied_weights_are_one_parameter():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    linearized = linearize(nn.Sequential(first, nn.Tanh(), second))
    assert [name for name, _ in linearized.named_parameters()] == ["0.weight", "0.bias"]
    assert "2.weight" in linearized.state_dict()
    assert_is_the_taylor_model(
        nn.Sequential(first, nn.Tanh(), second).double(),
        torch.randn(3, 4).double(),
        "forward",
        1e-12,
    )


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: F.relu(m.a(x), inplace=True) + m.b(x),
        lambda m, x: m.b(x).add_(m.a(x)).relu_(),
        lambda m, x: (lambda y: y + F.relu(y, inplace=True))(m.a(x)),
        lambda m, x: (lambda y, z: (z.relu_(), y)[1])(*(lambda y: (y, y[:, :2]))(m.a(x))),
        lambda m, x: (lambda y, z: (F.relu(z, inplace=True), y)[1])(
            *(lambda y: (y, y.flatten()))(m.a(x))
        ),
    ],
    ids=["owned", "methods", "read again", "through a view", "through a reshaping"],
)
def test_what_is_overwritten_is_overwritten_here_too(forward):
    torch.manual_seed(0)
    model = Apply(forward, a=nn.Linear(4, 3), b=nn.Linear(4, 3)).double()
    assert_is_the_taylor_model(model, torch.randn(5, 4).double(), "forward", 1e-12)


def test_a_normalisation_is_folded_only_where_nobody_reads_what_it_normalises():
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: (lambda y: m.norm(y) * y.mean() + m.norm(y.tanh()) + F.relu(y))(m.a(x)),
        a=nn.Conv2d(2, 3, 3),
        norm=nn.BatchNorm2d(3),
    ).double()
    x = torch.randn(4, 2, 5, 5).double()
    assert_is_the_taylor_model(_trained_statistics(model, x), x, "forward", 1e-12)
    model = Apply(
        lambda m, x: (lambda y: m.norm(y) + F.relu(y))(m.a(x)),
        a=nn.Conv2d(2, 3, 3),
        norm=nn.BatchNorm2d(3),
    ).double()
    assert linearize(model).one_pass
    assert_is_the_taylor_model(_trained_statistics(model, x), x, "forward", 1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.MaxPool2d(2, stride=1, dilation=2),
        nn.MaxPool2d(2, return_indices=True),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Conv2d(3, 3, 3, padding="same", padding_mode="circular"),
    ],
    ids=lambda layer: repr(layer),
)
def test_layers_with_options(layer):
    def forward(m, x):
        y = m.layer(m.a(x).tanh())
        return y[0] if isinstance(y, tuple) else y

    torch.manual_seed(0)
    model = Apply(forward, a=nn.Conv2d(2, 3, 3), layer=layer).double()
    assert_is_the_taylor_model(model, torch.randn(3, 2, 8, 8).double(), "forward", 1e-12)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.add(m.a(x), m.b(x), alpha=-2),
        lambda m, x: torch.add(m.a(x), 1) + m.b(x),
        lambda m, x: (lambda y: y + y)(m.a(x)) + m.b(x[:, :1].expand(-1, 4)),
        lambda m, x: m.a(x) + m.b(x)[:1],
        lambda m, x: F.relu(m.a(x), True) + F.pad(m.b(x), (0, 1), value=3.0)[:, 1:],
        lambda m, x: m.b(x).reshape(-1, 1, 3).flatten(1) + F.relu(m.a(x)).mean(dim=1, keepdim=True),
    ],
    ids=["alpha", "number", "twice", "broadcast", "padding", "shapes"],
)
def test_functions_with_options(forward):
    torch.manual_seed(0)
    model = Apply(forward, a=nn.Linear(4, 3), b=nn.Linear(4, 3)).double()
    assert_is_the_taylor_model(model, torch.randn(5, 4).double(), "forward", 1e-12)


def test_a_network_that_hides_its_operations_takes_two_passes():
    pool = nn.MaxPool1d(2)
    model = Apply(lambda m, x: pool(m.a(x)[None])[0], a=nn.Linear(4, 6)).double()
    assert not linearize(model).one_pass
    assert_is_the_taylor_model(model, torch.randn(3, 4).double(), "forward", 1e-12)


def test_a_network_that_refuses_a_stand_in_for_a_tensor_takes_two_passes():
    model = adapt(nn.Linear(3, 2), torch.ones(4, 3), select=lambda output: output).module
    x = torch.randn(5, 3)
    linearized = linearize(model)
    assert not linearized.one_pass
    torch.testing.assert_close(linearized(x), model(x))


def test_a_second_derivative_is_refused():
    model, x = _small_cnn()
    linearized = linearize(model)
    weight = linearized.get_parameter("0.weight")
    (gradient,) = torch.autograd.grad(linearized(x).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("name", "route", "message"),
    [
        ("weight norm", "forward", 'module .*weight.0. .*without forward derivative.*"reverse"'),
        ("custom function", "forward", 'the network has .*without forward derivative.*"reverse"'),
        ("padded embedding", "forward", 'not that of its backward pass.*route="reverse"'),
        ("batch norm of a changed gradient", "forward", "not that of its backward pass"),
        ("checkpoint", "forward", "torch.utils.checkpoint"),
        ("checkpoint", "reverse", "torch.utils.checkpoint"),
        ("positions", "forward", 'not that of its backward pass.*route="reverse"'),
        ("covered and not", "forward", 'without forward derivative.*"reverse"'),
        *((name, "forward", "without forward derivative.*by nn.Embedding and") for name in BAGS),
        *((name, "reverse", "without second derivative.*by nn.Embedding and") for name in BAGS),
    ],
)
def test_what_a_route_cannot_do_it_refuses(name, route, message):
    (problem,) = (problem for problem in PROBLEMS if problem.name == name)
    with pytest.raises(ModelError, match=message):
        linearize(problem.build(), route)(problem.samples())


def _without_grad(m, x):
    with torch.no_grad():
        y = m.a(x)
    return m.b(x) + y


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(4, 3).requires_grad_(False), "no trainable parameters"),
        (lambda: nn.LazyLinear(3), "lazy"),
        (lambda: linearize(nn.Linear(4, 3)), "linearised already"),
        (lambda: Apply(lambda m, x: (m.a(x), x), a=nn.Linear(4, 3)), "returns a tuple"),
        (lambda: Apply(lambda m, x: m.a(x), a=nn.Linear(4, 3), route=nn.Linear(1, 1)), "'route'"),
        (lambda: Apply(lambda m, x: x * 2, a=nn.Linear(4, 3)), "does not depend"),
        (lambda: Apply(lambda m, x: F.dropout(m.a(x)), a=nn.Linear(4, 3)), "two outputs"),
        (lambda: Apply(_without_grad, a=nn.Linear(4, 3), b=nn.Linear(4, 3)), "torch.no_grad"),
        (
            lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)),
            "1 is a BatchNorm without running statistics",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_has_no_taylor_model_is_refused(build, message):
    with pytest.raises(ModelError, match=message):
        linearize(build())(torch.randn(5, 4))


def test_an_unknown_route_is_refused():
    with pytest.raises(ModelError, match='"forward" or "reverse"'):
        linearize(nn.Linear(2, 2), "sideways")
