"""The first sentences of a report, for each kind of motion, and where they cannot be said."""

from dataclasses import replace

import numpy as np
import pytest

from conescope.report.opening import opening
from conescope.report.run_analysis import RunAnalysis
from conescope.statistics.cone.verdict import KINDS
from made_runs import constant_series, made_run, made_series


def decided(verdict, probability, **changes):
    run = made_run()
    found = RunAnalysis(run).cone
    weights = dict.fromkeys(KINDS, 0.0) | probability
    analysis = RunAnalysis(run)
    vars(analysis)["cone"] = replace(found, verdict=verdict, probability=weights, **changes)
    return opening(analysis)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("confined", "stays in a cone of half-angle"),
        ("frozen", "stands still, within the noise of its measurement"),
        ("free diffusion", "moves on as a random walk does"),
        ("drift", "moves on in one direction"),
        ("mixed", "moves in a mixed way (confined 60%, diffusion 40%)"),
    ],
)
def test_each_verdict_is_a_sentence_with_its_probability(verdict, words):
    shares = {"noise": 0.0, "confined": 0.6, "diffusion": 0.4, "drift": 0.0}
    text = decided(verdict, {verdict: 0.93}, shares=shares)
    assert f"the kernel {words}" in text
    assert "with probability 0.93" in text
    assert ("there is no cone" in text) == (verdict in ("free diffusion", "drift"))
    assert text.count("half-angle") == (verdict == "confined")


def test_undecided_says_what_may_be():
    text = decided("undecided", {"confined": 0.26, "mixed": 0.74})
    assert "it cannot be told" in text
    assert "(probabilities: mixed 0.74, confined 0.26; a verdict takes 0.9)" in text
    assert "in a cone" not in text
    assert "kernels" not in text


def test_undecided_for_want_of_kernels_says_how_many_it_takes():
    axis = np.array([0.0] * 4 + [1 / 14] * 14)
    text = decided("undecided", {"confined": 0.99}, axis=axis)
    assert "since there are 14 kernels, and that takes at least 20: measure more often" in text


def test_without_a_boundary_the_motion_counts_from_the_start():
    assert decided("drift", {"drift": 1.0}, boundary=None).startswith("From the start the kernel")


def test_too_few_kernels_or_none_that_differ_say_so():
    one = opening(RunAnalysis(made_run(made_series([0]))))
    assert one.startswith("Whether the kernel stays in a cone cannot be told: ")
    assert "S =" not in one
    two = opening(RunAnalysis(made_run(made_series([0, 5]))))
    assert "At iteration 5 the kernel is at a distance S = " in two
    same = opening(RunAnalysis(made_run(constant_series(range(20)))))
    assert "cannot be told" in same
    assert "distance S = 0 " in same


def test_averaged_weights_tell_noise():
    steps = range(0, 1001, 20)
    noisy = made_series(steps)
    calm = made_series(steps, noise=0.02)
    text = opening(RunAnalysis(made_run(noisy, averaged=calm)))
    assert "Its confined motion is SGD's noise (averaged weights: " in text
    same = opening(RunAnalysis(made_run(noisy, averaged=noisy)))
    assert "Its confined motion is more than SGD's noise (averaged weights: 1 of" in same
