"""The same networks in JAX: a torch module tree as a pure function of its parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from torch import nn

from conescope.training.models.resnet import Block, PadChannels

Parameters = dict[str, jax.Array]
Apply = Callable[[Parameters, jax.Array], jax.Array]


def translate(model: nn.Module) -> tuple[Apply, Parameters]:
    """The function apply(parameters, x), in evaluation mode, and its parameters.

    Raises:
        TypeError: if the model holds a module that is not in the table below.
    """
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in model.named_parameters()}
    return _apply(model, ""), params


def _apply(module: nn.Module, prefix: str) -> Apply:
    for kind, rule in RULES.items():
        if isinstance(module, kind):
            return rule(module, prefix)
    raise TypeError(f"no JAX counterpart of {type(module).__name__}")


def _sequential(module: nn.Sequential, prefix: str) -> Apply:
    layers = [_apply(child, f"{prefix}{name}.") for name, child in module.named_children()]

    def apply(p: Parameters, x: jax.Array) -> jax.Array:
        for layer in layers:
            x = layer(p, x)
        return x

    return apply


def _block(module: Block, prefix: str) -> Apply:
    names = ("conv1", "norm1", "relu1", "conv2", "norm2")
    path = [_apply(getattr(module, name), f"{prefix}{name}.") for name in names]
    shortcut = _apply(module.shortcut, f"{prefix}shortcut.")

    def apply(p: Parameters, x: jax.Array) -> jax.Array:
        y = x
        for layer in path:
            y = layer(p, y)
        return jax.nn.relu(y + shortcut(p, x))

    return apply


def _conv(module: nn.Conv2d, prefix: str) -> Apply:
    padding = [(side, side) for side in module.padding]

    def apply(p: Parameters, x: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(x, p[f"{prefix}weight"], module.stride, padding)
        return y if module.bias is None else y + p[f"{prefix}bias"][:, None, None]

    return apply


def _norm(module: nn.BatchNorm2d, prefix: str) -> Apply:
    mean = jnp.asarray(module.running_mean.numpy())[:, None, None]
    scale = jnp.asarray((module.running_var + module.eps).rsqrt().numpy())[:, None, None]

    def apply(p: Parameters, x: jax.Array) -> jax.Array:
        gain, shift = (p[f"{prefix}{name}"][:, None, None] for name in ("weight", "bias"))
        return (x - mean) * scale * gain + shift

    return apply


def _linear(module: nn.Linear, prefix: str) -> Apply:
    del module
    return lambda p, x: x @ p[f"{prefix}weight"].T + p[f"{prefix}bias"]


def _max_pool(module: nn.MaxPool2d, prefix: str) -> Apply:
    del prefix
    window = (1, 1, module.kernel_size, module.kernel_size)
    return lambda _, x: lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def _average_pool(module: nn.AvgPool2d, prefix: str) -> Apply:
    del prefix
    size = module.kernel_size
    window = (1, 1, size, size)
    return lambda _, x: lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / size**2


def _pad_channels(module: PadChannels, prefix: str) -> Apply:
    del prefix
    widths = ((0, 0), (module.before, module.after), (0, 0), (0, 0))
    return lambda _, x: jnp.pad(x[:, :, ::2, ::2], widths)


def _without_parameters(
    function: Callable[[jax.Array], jax.Array],
) -> Callable[[nn.Module, str], Apply]:
    return lambda _module, _prefix: lambda _, x: function(x)


RULES = {
    Block: _block,
    PadChannels: _pad_channels,
    nn.Sequential: _sequential,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _norm,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _without_parameters(lambda x: x.mean((2, 3), keepdims=True)),
    nn.ReLU: _without_parameters(jax.nn.relu),
    nn.Flatten: _without_parameters(lambda x: x.reshape(len(x), -1)),
    nn.Identity: _without_parameters(lambda x: x),
}
