"""The probe's samples in the report: images as pictures, bytes as texts, tokens as numbers."""

import re
from html import unescape

import pytest
import torch

from conescope.report.probe_pictures import leading_eigenvectors, leading_samples
from conescope.report.run_analysis import RunAnalysis
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
        assert "<b>" not in html
        assert re.search(r"sample 0, class 0: [+-]?\d", html)


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
