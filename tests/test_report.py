import math
import re
from html.parser import HTMLParser

import pytest

from conescope.errors import StoreError
from conescope.report import write_report
from conescope.report.figures import FIGURES
from conescope.report.run_analysis import RunAnalysis
from conescope.report.sections import SECTIONS, contents
from conescope.report.summary import main_numbers
from made_runs import MadeRecipe, constant_series, made_run, made_series

CHARTS = {name: figure for name, figure in FIGURES.items() if name != "overview"}
SLIDER = {"slider-kernel", "slider-place", "slider-spectrum"}
LOADING_ATTRIBUTES = {"src", "href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """Tags with their attributes, ids, and the text outside scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.charts, self.texts, self.raw = [], set(), [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if ("class", "plotly-graph-div") in attrs:
            self.charts.add(dict(attrs)["id"])
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.raw = False

    def handle_data(self, data):
        if not self.raw:
            self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(write_report(made_run(), tmp_path_factory.mktemp("report") / "report.html"))


def test_loads_nothing_from_elsewhere(page):
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        loading = {name: attributes[name] for name in LOADING_ATTRIBUTES & attributes.keys()}
        assert all(name == "href" and value.startswith("#") for name, value in loading.items())


def test_the_browser_is_told_to_load_nothing(page):
    policies = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")
    assert "http" not in policies[0]


def test_styles_load_nothing(tmp_path):
    path = write_report(made_run(), tmp_path / "report.html")
    style = re.search(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_fits_a_phone(page):
    viewports = [a["content"] for t, a in page.tags if a.get("name") == "viewport"]
    assert viewports == ["width=device-width, initial-scale=1"]


def test_holds_the_figures_that_are_saved_and_the_sections_plots(page):
    run = made_run()
    shown = {name: figure_of(run) for name, figure_of in CHARTS.items()}
    for part in contents(RunAnalysis(run)):
        shown |= part.plots
    assert page.charts == shown.keys() | SLIDER
    for plot in shown.values():
        assert plot.title in page.text
        assert plot.caption in page.text


def test_holds_numbers_recipe_environment_and_command(page):
    run = made_run()
    shown = {**main_numbers(run), **run.environment}
    for part in contents(RunAnalysis(run)):
        shown |= part.numbers
    for text in (*shown, *shown.values()):
        assert text in page.text
    for text in (run.name, run.recipe.description, run.recipe.to_yaml(), run.command, "finished"):
        assert text in page.text


def test_every_section_is_there_or_says_why_it_is_absent(page):
    for section, part in zip(SECTIONS, contents(RunAnalysis(made_run())), strict=True):
        assert (section.about in page.text) == (part.says_something or bool(part.missing))
        for reason in part.missing:
            assert f"Absent: {reason}." in page.text


def test_every_text_is_escaped(tmp_path, page):
    evil = "</title><script>alert('x')</script><img src=x onerror=alert(1)> & $name ${plotly}"
    run = made_run(
        name=evil,
        recipe=MadeRecipe(evil, evil),
        environment={evil: evil},
        command=evil,
    )
    attacked = Page(write_report(run, tmp_path / "report.html"))
    assert attacked.count("script") == page.count("script")
    assert attacked.count("img") == 0
    assert attacked.text.count(evil) == 7


def test_the_first_words_are_the_answer_of_the_cone(page):
    found = RunAnalysis(made_run()).cone
    opening = page.text.split("Main numbers")[0]
    assert "the kernel stays in a cone of half-angle" in opening
    assert f"After iteration {found.first:,}" in opening
    assert f"{math.degrees(found.half_angle.value):.1f}°" in opening
    p = found.probability["confined"]
    assert f"with probability {'above 0.99' if p > 0.99 else f'{p:.2f}'}." in opening


def test_every_part_has_an_entry_in_the_contents(page):
    ids = [a["id"] for tag, a in page.tags if tag == "h2"]
    targets = [a["href"] for tag, a in page.tags if tag == "a"]
    assert len(ids) == len(set(ids)) > 8
    assert targets == [f"#{name}" for name in ids]


def test_the_page_names_the_journal_that_it_was_made_from_and_what_it_lost(tmp_path):
    run = made_run(head="0123456789abcdef", lost=("line 3 is missing",))
    path = write_report(run, tmp_path / "report.html")
    assert '<meta name="conescope-journal" content="0123456789abcdef">' in path.read_text()
    assert "finished; lost to damage: line 3 is missing" in Page(path).text


def test_unfinished_is_said(tmp_path):
    run = made_run(finished=False, total_steps=5000)
    text = Page(write_report(run, tmp_path / "report.html")).text
    assert "unfinished: kernels up to step 1,000 of 5,000" in text


def test_figures_a_run_is_too_short_for_say_why(tmp_path):
    one = Page(write_report(made_run(made_series([0])), tmp_path / "one.html"))
    assert one.charts == {"training", "cone-eigenvalues"}
    assert one.text.count("No figure ") == len(CHARTS) - 1
    assert "Absent: the motion of 1 kernels tells nothing" in one.text
    same = Page(write_report(made_run(constant_series([0, 1, 2])), tmp_path / "same.html"))
    assert CHARTS.keys() - same.charts == {"embedding-2d", "embedding-3d"}
    assert "all kernels are the same" in same.text


@pytest.mark.parametrize("steps", [(0, 3), (0, 3, 5), (0, 1, 2, 5, 10, 20, 50)])
def test_few_or_uneven_kernels_have_all_charts(tmp_path, steps):
    path = write_report(made_run(made_series(steps)), tmp_path / "report.html")
    assert Page(path).charts >= CHARTS.keys() | {
        "cone-velocity",
        "cone-eigenvalues",
        "cone-samples",
    }


def test_a_report_of_a_thousand_kernels_is_small(tmp_path):
    path = write_report(made_run(made_series(range(0, 10_000, 10))), tmp_path / "long.html")
    assert path.stat().st_size < 15e6


def test_same_run_same_bytes(tmp_path):
    one, other = (write_report(made_run(), tmp_path / name) for name in ("a.html", "b.html"))
    assert one.read_bytes() == other.read_bytes()


def test_folder_is_made_and_nothing_is_left_beside(tmp_path):
    path = tmp_path / "deep" / "report.html"
    assert write_report(made_run(), path) == path
    assert list(path.parent.iterdir()) == [path]


def test_an_earlier_report_outlives_a_failed_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("earlier")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(StoreError, match="No space left"):
        write_report(made_run(), path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
