"""The probe's samples in the report: images as pictures, bytes as texts, tokens as numbers."""

import re
from html import unescape

import numpy as np
import pytest
import torch

from conescope.report.iterations import kernels_by_iteration
from conescope.report.probe_pictures import (
    leading_eigenvectors,
    leading_samples,
    samples_by_iteration,
)
from conescope.report.run_analysis import RunAnalysis
from conescope.statistics.attribution import attribution
from conescope.training.recipe_reading import load_recipe
from made_runs import made_run, made_series

TEXTS = [f"{word:8}" for word in ("<b>bold", "to be", "or not", "a\nb", "é", "x & y", "q", "end")]


def shown(recipe, inputs):
    run = made_run(made_series(range(0, 401, 20)), recipe=load_recipe(recipe))
    analysis = RunAnalysis(run, torch.arange(8) % 2, inputs)
    return leading_samples(analysis), leading_eigenvectors(analysis)


def quoted(html):
    return {unescape(text) for text in re.findall("<q>(.*?)</q>", html)}


def test_bytes_are_shown_as_texts():
    padded = [text.encode()[:8] for text in TEXTS]
    for html in shown("bytes-lm", torch.tensor([list(text) for text in padded])):
        assert quoted(html) == {text.decode().replace("\n", " ") for text in padded}
        assert "<b>bold" not in html
        assert re.search(r"sample 0, class 0: <b>[+-]?\d", html)


def test_tokens_of_no_known_words_are_shown_as_numbers():
    html, _ = shown("grokking", torch.arange(24).reshape(8, 3))
    assert "0 1 2" in quoted(html)
    assert len(quoted(html)) == 8


def test_images_are_shown_as_pictures():
    html, _ = shown("digits", torch.zeros(8, 1, 8, 8, dtype=torch.uint8))
    assert html.count("<img") == 8
    assert quoted(html) == set()


@pytest.mark.parametrize("inputs", [None, torch.randn(8, 3)])
def test_samples_that_are_neither_are_left_out(inputs):
    assert shown("digits", inputs) == ("", "")


def test_a_runs_own_texts_are_shown_without_classes():
    texts = (*TEXTS[:-1], "a" * 1000)
    analysis = RunAnalysis(made_run(made_series(range(0, 401, 20)), texts=texts))
    for html in (leading_samples(analysis), leading_eigenvectors(analysis)):
        assert quoted(html) == {*(text.replace("\n", " ") for text in TEXTS[:-1]), "a" * 199 + "…"}
        assert "<b>bold" not in html
        assert "sample 0: <b>" in html


def test_texts_that_are_not_one_for_each_sample_are_left_out():
    analysis = RunAnalysis(made_run(made_series(range(0, 401, 20)), texts=("one", "two")))
    assert leading_samples(analysis) == leading_eigenvectors(analysis) == ""
    assert "slider-samples" not in kernels_by_iteration(analysis)


def test_samples_of_each_iteration_are_those_that_moved_the_kernel_until_then():
    series = made_series(range(0, 401, 20), samples=20)
    inputs = torch.zeros(20, 1, 300, 300, dtype=torch.uint8)
    run = made_run(series, recipe=load_recipe("digits"))
    html, stops = samples_by_iteration(RunAnalysis(run, torch.arange(20) % 2, inputs), [0, 5, 20])
    assert stops[0] == []
    for place, stop in zip((5, 20), stops[1:], strict=True):
        shares = attribution(series.kernels[0], series.kernels[place]).images
        assert [sample for sample, _ in stop] == np.argsort(-shares)[:8].tolist()
        assert [share for _, share in stop] == pytest.approx(np.sort(shares)[::-1][:8], abs=1e-5)
    told = [int(place) for place in re.findall(r'data-sample="(\d+)">', html)]
    numbers = re.findall(r"<b>(.*?)%</b>", html)
    assert [float(n) for n in numbers[:8]] == [round(100 * share, 1) for _, share in stops[-1]]
    hidden = {int(place) for place in re.findall(r'data-sample="(\d+)" hidden>', html)}
    assert told == [sample for sample, _ in stops[-1]]
    assert hidden == {sample for sample, _ in stops[1]} - {*told}
