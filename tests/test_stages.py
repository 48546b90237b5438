"""Steps and stages from the names of revisions."""

import pytest

from conescope.errors import CheckpointError
from conescope.measuring.hub.stages import placed


def found(*chosen, known=(), **options):
    names = [name for matched in chosen for name in matched]
    return [(p.name, p.step, p.stage, p.begins) for p in placed(chosen, known or names, **options)]


def test_one_stage_has_the_steps_of_its_names():
    assert found(["step10", "step9", "step0"]) == [
        ("step0", 0, "", 0), ("step9", 9, "", 0), ("step10", 10, "", 0)
    ]  # fmt: skip
    assert [step for _, step, _, _ in found(["step1000-tokens4B", "step0-tokens0B"])] == [0, 1000]
    assert [step for _, step, _, _ in found(["ckpt-5", "ckpt-20"])] == [5, 20]
    repositories = [f"multiberts-seed_0-step_{n}k" for n in (2000, 0, 20)]
    assert [step for _, step, _, _ in found(repositories)] == [0, 20_000, 2_000_000]


OLMO = [
    "stage1-step500-tokens2B",
    "stage1-step1000-tokens4B",
    "stage2-ingredient1-step200-tokens1B",
    "stage2-ingredient1-step100-tokens1B",
    "stage2-ingredient2-step100-tokens1B",
]


def test_a_stage_that_counts_anew_begins_at_the_last_step_of_the_one_before():
    assert found(OLMO[:2], OLMO[2:4], known=OLMO) == [
        (OLMO[0], 500, "stage1", 0), (OLMO[1], 1000, "stage1", 0),
        (OLMO[3], 1100, "stage2-ingredient1", 1000), (OLMO[2], 1200, "stage2-ingredient1", 1000),
    ]  # fmt: skip


def test_one_pattern_may_match_several_stages():
    assert found(OLMO[:4]) == found(OLMO[:2], OLMO[2:4])


def test_a_stage_ends_at_its_last_step_chosen_or_not():
    alone = found([OLMO[0]], [OLMO[3]], known=OLMO)
    assert alone[1] == (OLMO[3], 1100, "stage2-ingredient1", 1000)


def test_a_stage_that_counts_on_stays_as_it_is():
    names = ["stage1-step-40", "stage1-step-80", "stage2-step-120", "stage3-step-160"]
    assert [(step, begins) for _, step, _, begins in found(names)] == [
        (40, 0), (80, 0), (120, 80), (160, 120)
    ]  # fmt: skip


def test_three_stages_add_up():
    names = ["stage1-step40", "stage1-step80", "stage2-step20", "stage3-step10"]
    assert [step for _, step, _, _ in found(names)] == [40, 80, 100, 110]


def test_stages_without_numbers_need_an_order():
    names = ["pretrain-step10", "anneal-step5"]
    with pytest.raises(CheckpointError, match="which of the stages anneal, pretrain comes first"):
        found(names)
    assert [step for _, step, _, _ in found(names[:1], names[1:])] == [10, 15]


def test_steps_by_a_pattern_or_given():
    assert [s for _, s, _, _ in found(["a1-x5", "a1-x7"], pattern=r"x(\d+)")] == [5, 7]
    staged = found(["s1-x5", "s2-x5"], pattern=r"x(\d+)")
    assert [(step, begins) for _, step, _, begins in staged] == [(5, 0), (10, 5)]
    assert [s for _, s, _, _ in found(["red", "blue"], steps={"red": 3, "blue": 1})] == [1, 3]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([["main", "step1"]], "main has no number in its name"),
        ([[OLMO[3], OLMO[4]]], "stage2-ingredient1, stage2-ingredient2 comes first"),
        ([["stage1-step9"], ["stage2-step0", "stage2-step1"]], "both are at step 9"),
        ([["step1-a", "step1-b"]], "cannot tell the steps"),
    ],
)
def test_what_cannot_be_told_is_refused(chosen, message):
    with pytest.raises(CheckpointError, match=message):
        found(*chosen)


def test_a_stage_that_counts_on_from_one_that_counted_anew():
    names = [
        "stage1-step0",
        "stage1-step1000",
        "stage2-step100",
        "stage2-step500",
        "stage3-step600",
    ]
    assert [step for _, step, _, _ in found(names)] == [0, 1000, 1100, 1500, 1600]


@pytest.mark.parametrize("word", ["seed", "multiberts-seed_", "run-", "ingredient", "Replica."])
def test_what_may_be_trained_side_by_side_is_no_order(word):
    names = [f"{word}{number}-step{step}" for number in (1, 2) for step in (10, 20)]
    with pytest.raises(CheckpointError, match="cannot be told which of the stages"):
        found(names)
    assert [step for _, step, _, _ in found(names[:2], names[2:])] == [10, 20, 30, 40]


@pytest.mark.parametrize("names", [["step1,000", "step2,000"], ["step1,000", "step1,500"]])
def test_a_number_with_commas_is_not_cut(names):
    with pytest.raises(CheckpointError, match="is no whole number"):
        found(names)


@pytest.mark.parametrize("options", [{}, {"pattern": r"step(\d+)"}])
def test_a_branch_of_another_kind_ends_no_stage(options):
    names = ["step500", "step1000", "stage2-step100"]
    known = [*names, "release-20250101", "v2", "main"]
    assert [s for _, s, _, _ in found(names, known=known, **options)] == [500, 1000, 1100]
    bare = ["ckpt-500", "ckpt-1000", "stage2-step100"]
    known = [*bare, "release-20250101", "ckpt-2000"]
    if not options:
        assert [s for _, s, _, _ in found(bare, known=known)] == [500, 1000, 2100]
