"""The networks against their published parameter counts, shapes and initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conescope.errors import RecipeError
from conescope.training.models import build_model
from conescope.training.models.lenet import LeNet5
from conescope.training.models.resnet import ResNet20
from conescope.training.models.vgg import VGG16
from conescope.training.recipe_fields import ModelRecipe

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)

FAMILIES = [
    pytest.param(LeNet5, MNIST, id="lenet"),
    pytest.param(ResNet20, CIFAR, id="resnet"),
    pytest.param(VGG16, CIFAR, id="vgg"),
]

VARIANTS = [
    pytest.param(lambda: LeNet5(0.5), MNIST, id="lenet"),
    pytest.param(lambda: ResNet20(0.5, shortcut="A"), CIFAR, id="resnet-A"),
    pytest.param(lambda: ResNet20(0.5, shortcut="B"), CIFAR, id="resnet-B"),
    pytest.param(lambda: ResNet20(0.2, shortcut="A"), CIFAR, id="resnet-odd"),
    pytest.param(lambda: ResNet20(0.5, shortcut="B", norm="layer"), CIFAR, id="resnet-layer"),
    pytest.param(lambda: VGG16(0.125, head="large"), CIFAR, id="vgg-large"),
    pytest.param(lambda: VGG16(0.125, head="small"), CIFAR, id="vgg-small"),
    pytest.param(lambda: VGG16(0.125, head="small", norm="layer"), CIFAR, id="vgg-layer"),
]

Build = Callable[[], nn.Module]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (LeNet5, 61_706),
        (ResNet20, 269_722),
        (lambda: ResNet20(shortcut="B"), 272_474),
        (VGG16, 33_646_666),
        (lambda: VGG16(head="small"), 14_728_266),
    ],
)
def test_published_parameter_counts(build: Build, parameters: int):
    assert count(build()) == parameters


def test_layer_norm_has_as_many_parameters_as_batch_norm():
    assert count(ResNet20(norm="layer", shortcut="B")) == 272_474
    assert count(VGG16(norm="layer", head="small")) == 14_728_266


@pytest.mark.parametrize(("build", "image"), VARIANTS)
def test_logits_and_gradients(build: Build, image: tuple[int, ...]):
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(3, *image)
    logits = model(x)
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("build", "image"), VARIANTS)
def test_rows_are_independent_in_evaluation_mode(build: Build, image: tuple[int, ...]):
    torch.manual_seed(0)
    model = build().double().eval()
    x = torch.randn(3, *image, dtype=torch.float64)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("family", "image"), FAMILIES)
def test_other_numbers_of_classes(family: Callable[..., nn.Module], image: tuple[int, ...]):
    assert family(0.125, classes=3).eval()(torch.randn(2, *image)).shape == (2, 3)


@pytest.mark.parametrize(("build", "image"), VARIANTS)
def test_the_seed_fixes_the_initial_weights(build: Build, image: tuple[int, ...]):
    def state(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build().state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_width_scales_channels_and_hidden_units():
    lenet = LeNet5(2)
    assert [lenet.conv1.out_channels, lenet.conv2.out_channels] == [12, 32]
    assert [lenet.fc1.out_features, lenet.fc2.out_features] == [240, 168]
    resnet = ResNet20(0.25)
    assert [resnet.conv.out_channels, resnet.fc.in_features] == [4, 16]
    vgg = VGG16(0.5)
    assert [vgg.conv1_1.out_channels, vgg.conv5_3.out_channels] == [32, 256]
    assert [vgg.fc1.out_features, vgg.fc3.in_features] == [2048, 2048]


def test_no_width_leaves_a_layer_without_channels():
    assert LeNet5(0.01).conv1.out_channels == 1


def test_shortcut_a_subsamples_and_centres_the_old_channels():
    shortcut = ResNet20().stage2[0].shortcut
    x = torch.randn(2, 16, 32, 32)
    y = shortcut(x)
    assert y.shape == (2, 32, 16, 16)
    torch.testing.assert_close(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_layer_norm_normalises_every_pixel():
    norm = ResNet20(norm="layer").norm
    y = norm(torch.randn(2, 16, 4, 4) * 3 + 1)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 4, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(2, 4, 4), atol=1e-4, rtol=0)


def scales(model: nn.Module) -> Tensor:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    return torch.cat([m.weight.detach() for m in norms])


@pytest.mark.parametrize("build", [ResNet20, lambda: VGG16(0.25, head="large")])
def test_scales_start_at_one(build: Build):
    assert (scales(build()) == 1).all()


@pytest.mark.parametrize(
    "build", [lambda: ResNet20(shortcut="B"), lambda: VGG16(0.25, head="small")]
)
def test_scales_start_uniform(build: Build):
    torch.manual_seed(0)
    gamma = scales(build())
    assert 0 <= gamma.min() < 0.05
    assert 0.95 < gamma.max() <= 1
    assert abs(gamma.mean() - 0.5) < 5 / math.sqrt(12 * len(gamma))


@pytest.mark.parametrize(
    ("layer", "variance"),
    [
        (lambda: ResNet20().stage3[2].conv2, 2 / (64 * 9)),
        (lambda: VGG16(head="small").conv4_1, 2 / (256 * 9)),
        (lambda: VGG16().conv4_1, 2 / (512 * 9)),
        (lambda: VGG16(0.25).fc2, 0.01**2),
    ],
    ids=["resnet", "vgg-small", "vgg-large", "vgg-large-linear"],
)
def test_initial_weights_have_the_published_variance(
    layer: Callable[[], nn.Conv2d | nn.Linear], variance: float
):
    torch.manual_seed(0)
    weight = layer().weight.detach()
    assert abs(weight.square().mean() / variance - 1) < 5 * math.sqrt(2 / weight.numel())


@pytest.mark.parametrize(("family", "image"), FAMILIES)
@pytest.mark.parametrize("width", [0, -1.0, math.nan, math.inf, "wide", True, None])
def test_a_bad_width_is_refused(
    family: Callable[..., nn.Module], image: tuple[int, ...], width: object
):
    with pytest.raises(RecipeError, match=r"width is .* give a"):
        family(width)


@pytest.mark.parametrize(("family", "image"), FAMILIES)
@pytest.mark.parametrize("classes", [0, -3, 2.5, True])
def test_a_bad_number_of_classes_is_refused(
    family: Callable[..., nn.Module], image: tuple[int, ...], classes: object
):
    with pytest.raises(RecipeError, match=r"classes is .* give an integer"):
        family(0.125, classes=classes)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet20(shortcut="C"), 'shortcut is \'C\'; choose "A" or "B"'),
        (lambda: ResNet20(norm="group"), 'norm is \'group\'; choose "batch" or "layer"'),
        (lambda: VGG16(0.125, head="huge"), 'head is \'huge\'; choose "large" or "small"'),
        (lambda: VGG16(0.125, norm="group"), 'norm is \'group\'; choose "batch" or "layer"'),
    ],
)
def test_an_unknown_variant_is_refused(build: Build, message: str):
    with pytest.raises(RecipeError, match=message):
        build()


def test_a_recipe_builds_its_family_and_variant():
    small = build_model(ModelRecipe("vgg16", 0.1, {"head": "small"}), (3, 32, 32), 10)
    large = build_model(ModelRecipe("vgg16", width=0.1), (3, 32, 32), 10)
    assert count(small) < count(large)
    for name, shape in (("cnn", (1, 8, 8)), ("mlp", (3, 5, 4)), ("lenet5", (1, 28, 28))):
        logits = build_model(ModelRecipe(name), shape, 7)(torch.zeros(2, *shape))
        assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("recipe", "shape", "word"),
    [
        (ModelRecipe("lenet5"), (3, 32, 32), r"lenet5 takes images of shape \(1, 28, 28\)"),
        (ModelRecipe("cnn", 1.0, {"head": "small"}), (1, 8, 8), r"model\.head; cnn has no options"),
        (ModelRecipe("vgg16", 1.0, {"haed": "x"}), (3, 32, 32), r"mean model\.head\? vgg16 has"),
        (ModelRecipe("resnet20", 1.0, {"head": "small"}), (3, 32, 32), "options shortcut, norm"),
        (ModelRecipe("resnet18"), (3, 32, 32), r"model\.name takes .* did you mean resnet20\?"),
        (ModelRecipe("cnn"), (7,), "cnn needs images"),
        (ModelRecipe("cnn"), (1, 3, 8), "at least 4 × 4"),
    ],
)
def test_a_network_that_cannot_be_is_refused(recipe, shape, word):
    with pytest.raises(RecipeError, match=word):
        build_model(recipe, shape, 10)
