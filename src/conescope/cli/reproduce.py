"""`conescope reproduce`: the paper's figures, from training to picture."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.run import carry_out
from conescope.cli.stored import facts_of
from conescope.cli.switch import carry_out_children, draw, show_result
from conescope.cli.terminal import STDOUT, print_table, say
from conescope.errors import RecipeError
from conescope.experiments.reproductions import Reproduction, find_reproduction, networks, scales
from conescope.experiments.stored import load_run, read_recipe
from conescope.runs.contents import is_finished, is_whole
from conescope.runs.store import Folder
from conescope.training.recipe import Recipe

_OF_THE_MACHINE = ("--data.path", "--threads", "--device")

_FIGURES = {
    "fig1": "S to fixed kernels, S between neighbours, and the kernels in space",
    "fig2": "what is lost when training is linearised from iteration t on",
    "fig3": "the plots of figure 1 for a counterexample; ours is LeNet-5",
}

_ABOUT = About(
    Group.PAPER,
    "make a figure of the paper, from training to picture; goes on where it was",
    (
        "conescope reproduce fig1 --network resnet20",
        "conescope reproduce fig2 --network lenet5 --seeds 0,1,2 --out runs",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_with_fields(
        "reproduce",
        _reproduce,
        _ABOUT,
        "FIGURE --network NETWORK",
    )
    add_json(parser)
    parser.add_argument(
        "figure",
        metavar="FIGURE",
        choices=_FIGURES,
        help="; ".join(f"{name}: {meaning}" for name, meaning in _FIGURES.items()),
    )
    parser.add_argument("--network", required=True, choices=networks())
    parser.add_argument(
        "--scale",
        choices=scales(),
        default="two-cores",
        help="full: the paper's own size, for a GPU (--device cuda); two-cores: narrower or "
        "shorter, and the figure says how (default)",
    )
    parser.add_argument(
        "--seeds", metavar="LIST", default="0", help="seeds, such as 0,1,2 (default 0)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs"),
        help="where the runs' folders are, and the figures go (default runs)",
    )  # fmt: skip


def _reproduce(arguments: argparse.Namespace) -> int:
    reproduction = find_reproduction(arguments.network, arguments.scale)
    words = shlex.join(["conescope", *arguments.words])
    recipes = [reproduction.recipe(s, arguments.overrides) for s in _seeds(arguments.seeds)]
    paths = [arguments.out / recipe.id for recipe in recipes]
    for recipe, path in zip(recipes, paths, strict=True):
        status = _train(recipe, path, words)
        if status:
            return status
    name = f"{arguments.figure}-{arguments.network}-{arguments.scale}"
    if arguments.figure != "fig2":
        caption = _caption(reproduction, arguments)
        return _draw_overviews(paths, arguments.out / name, caption, as_json=arguments.json)
    return _switch(reproduction, paths, arguments, words, arguments.out / name)


def _train(recipe: Recipe, path: Path, words: str) -> int:
    from conescope.experiments.forecast import forecast

    if is_finished(folder := Folder(path)) and is_whole(folder):
        return 0
    say("cost", f"{path}: about {forecast(recipe).seconds / 60:,.0f} min from its beginning")
    return carry_out(recipe, path, words)


def _draw_overviews(paths: list[Path], stem: Path, caption: str, *, as_json: bool) -> int:
    from conescope.report.figures.overview import overview
    from conescope.report.save import save_plot
    from conescope.report.summary import main_numbers

    found = []
    for path in paths:
        run = load_run(path)
        file_stem = stem.with_name(f"{stem.name}-{run.name}")
        files = save_plot(overview(run), file_stem, run.name, caption, made_from=run.head)
        if as_json:
            found.append(facts_of(path, run.name, figures=files))
            continue
        print_table({"run": run.name, **main_numbers(run)})
        for file in files:
            STDOUT.print(str(file))
    if as_json:
        print_json({"runs": found})
    return 0


def _switch(
    reproduction: Reproduction,
    paths: list[Path],
    arguments: argparse.Namespace,
    words: str,
    stem: Path,
) -> int:
    from conescope.experiments.switch import plan_switch, read_switch

    until = read_recipe(paths[0]).training.steps
    within = [point for point in reproduction.points if point < until]
    if beyond := reproduction.points[len(within) :]:
        say(
            "warning",
            f"trainings of {until:,} iterations: no switch at {', '.join(map(str, beyond))}",
        )
    switch = plan_switch(paths, within)
    status = carry_out_children(switch, words)
    if status:
        return status
    result = read_switch(switch)
    files = draw(switch, result, stem, _caption(reproduction, arguments))
    show_result(result, files, as_json=arguments.json)
    return 0


def _caption(reproduction: Reproduction, arguments: argparse.Namespace) -> str:
    changed = shlex.join(_of_the_result(arguments.overrides))
    return f"{reproduction.caption}; {changed}" if changed else reproduction.caption


def _of_the_result(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that concern the machine only; each is a word or two."""
    kept: list[str] = []
    field = ""
    for word in overrides:
        field = word.partition("=")[0] if word.startswith("--") else field
        if field not in _OF_THE_MACHINE:
            kept.append(word)
    return kept


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise RecipeError(f"--seeds takes whole numbers such as 0,1,2, not {text!r}") from None
