"""Bad input: the right answer, or an error that names the place and the cure."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conescope.engine import entk, estimate_entk
from conescope.errors import ArgumentError, KernelError, ModelError


class Calls(nn.Module):
    """A module with one linear layer, and any function of its output."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


X = torch.randn(5, 4)


def refused(model, x=X, match="", error=ModelError, **options):
    with pytest.raises(error, match=match):
        entk(model, x, **options)


def test_batch_norm_in_training_mode():
    refused(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), match=r"'1' \(BatchNorm1d\).*eval")


def test_batch_norm_without_running_statistics():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    refused(model, match="track_running_stats=True")


def test_active_dropout():
    refused(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), match=r"'1' \(Dropout\).*eval")


def test_dropout_of_nothing_is_no_harm():
    assert entk(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)), X).values.shape == (5, 5)


def test_dropout_that_no_mode_switches_off():
    refused(Calls(lambda y: F.dropout(y.repeat(1, 20))), match="change with the others")


def test_samples_that_are_mixed():
    class Mean(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    refused(nn.Sequential(nn.Linear(4, 3), Mean(), nn.Linear(3, 2)), match="module '1'")


def test_outputs_that_are_no_tensor():
    refused(Calls(lambda y: {"logits": y}), match="dict, not a tensor; wrap")


def test_outputs_without_the_samples():
    refused(Calls(lambda y: y.sum()), match="first dimension")
    refused(Calls(lambda y: y.T), match="first dimension")


def test_outputs_that_have_no_derivative():
    refused(Calls(lambda y: y.argmax(1)), match="no derivative")


def test_no_parameters():
    refused(nn.Flatten(), match="no trainable parameters")
    refused(nn.Linear(4, 3).requires_grad_(False), match="requires_grad_")


def test_unknown_parameters():
    refused(nn.Linear(4, 3), params=["weigth"], match="did you mean 'weight'")


def test_no_samples():
    refused(nn.Linear(4, 3), x=X[:0], match="no samples")
    with pytest.raises(ModelError, match="`y` holds no samples"):
        entk(nn.Linear(4, 3), X, X[:0])


def test_samples_that_are_no_tensor():
    refused(nn.Linear(4, 3), x=[1.0], error=ArgumentError, match="x to be a Tensor, got list")


def test_nan():
    bad = X.clone()
    bad[2, 1] = float("nan")
    refused(nn.Linear(4, 3), x=bad, match="`x` holds NaN")
    model = nn.Linear(4, 3)
    model.bias.data[0] = float("inf")
    refused(model, match="'bias' holds NaN")


def test_another_device():
    refused(nn.Linear(4, 3), x=X.to("meta"), match="meta.*without values")


def test_integers_where_numbers_are_expected():
    refused(nn.Linear(4, 3), x=torch.ones(2, 4, dtype=torch.long), match="rejects.*int64.*dtype")


def test_another_shape():
    refused(nn.Linear(4, 3), x=torch.ones(2, 5), match="rejects.*shape")


@pytest.mark.parametrize("outputs", [3, -1])
def test_output_out_of_range(outputs):
    refused(nn.Linear(4, 3), outputs=outputs, error=KernelError, match="3 outputs")


def test_unknown_outputs():
    refused(nn.Linear(4, 3), outputs="logits", error=KernelError, match="outputs is")


@pytest.mark.parametrize("outputs", [None, 1.5, True])
def test_outputs_of_another_type(outputs):
    refused(nn.Linear(4, 3), outputs=outputs, error=ArgumentError, match="expected outputs")


@pytest.mark.parametrize("memory", ["much", "-1GB", 0, "2 XB"])
def test_memory_that_is_none(memory):
    refused(nn.Linear(4, 3), memory=memory, error=KernelError, match="memory is an amount")


def test_unknown_precision():
    refused(nn.Linear(4, 3), precision="half", error=KernelError, match="precision is")


def test_one_draw():
    with pytest.raises(KernelError, match="at least 2"):
        estimate_entk(nn.Linear(4, 3), X, draws=1)
