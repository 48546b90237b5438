"""What a notebook shows of runs and of series, and how far a long call is."""

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import conescope as cs
from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries
from conescope.report import answer
from conescope.runs import environment
from made_runs import constant_series, made_run, made_series

EVIL = "<img src=x onerror=alert(1)></div><script>1</script>"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.open += [] if tag in ("img", "br") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", html))


def test_a_run_shows_its_answer_and_the_papers_figure():
    run = made_run()
    shown = run._repr_html_()
    assert answer(run) in text_of(shown).replace("&lt;", "<")
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', shown)
    assert base64.b64decode(picture[1]).startswith(b"\x89PNG")
    assert len(shown) < 300_000


def test_names_that_inject_are_text_in_a_card():
    run = made_run(name=EVIL, path=Path(EVIL))
    tags = Tags(run._repr_html_())
    assert tags.open == []
    assert tags.seen.count("img") == 1
    assert "script" not in tags.seen


def test_a_run_of_one_kernel_shows_its_numbers_and_why_there_is_no_picture():
    run = made_run(made_series([0]))
    shown = run._repr_html_()
    assert "needs two kernels" in text_of(shown)
    assert "<table" in shown
    assert "<img" not in shown


def test_kernels_that_are_not_finite_are_named():
    kernels = [*made_series([0]).kernels, Kernel(torch.full((8, 8), torch.nan))]
    series = KernelSeries([0, 10], kernels)
    for shown in (made_run(series)._repr_html_(), series._repr_html_()):
        assert "step 10" in text_of(shown)


def test_equal_kernels_say_why_there_is_no_picture():
    assert "the same" in text_of(made_run(constant_series([0, 10, 20]))._repr_html_())


def test_a_series_shows_its_distances():
    shown = made_series([0, 10, 20])._repr_html_()
    assert "3 kernels of 8 samples, steps 0 to 20" in text_of(shown)
    assert "<img" in shown
    assert "needs two kernels" in made_series([0])._repr_html_()


def test_reading_a_run_loads_no_plots(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    with cs.Watch(model, torch.randn(4, 3), when="0", out=tmp_path / "run") as watch:
        watch.step(0)
    code = (
        "import sys; import conescope as cs; run = cs.load_run(sys.argv[1]); "
        "assert not {'matplotlib', 'plotly', 'IPython'} & set(sys.modules); "
        "run._repr_html_(); assert 'matplotlib' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=True)


class Shell:
    kernel = "some kernel"


class Screen:
    """A notebook's output area, which keeps what it showed."""

    def __init__(self):
        self.shown = []

    def __call__(self, value, display_id):
        assert display_id is True
        self.update(value)
        return self

    def update(self, value):
        self.shown.append((repr(value), value._repr_html_()))


@pytest.fixture
def screen(monkeypatch):
    """A notebook that runs this program."""
    import IPython
    import IPython.display

    screen = Screen()
    monkeypatch.setattr(IPython, "get_ipython", Shell)
    monkeypatch.setattr(IPython.display, "display", screen)
    return screen


def test_a_long_call_shows_a_bar_in_a_notebook(screen, tmp_path):
    model = torch.nn.Linear(3, 2)
    for step in (0, 5, 10):
        torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / f"step{step}.pt")
    checkpoints = str(tmp_path / "*.pt")
    cs.measure_checkpoints(model, checkpoints, torch.randn(4, 3), out=tmp_path / "out")
    assert screen.shown[0][0].startswith("out: 0 of 3")
    text, html = screen.shown[-1]
    assert text.startswith("out: 3 of 3")
    assert 'value="3" max="3"' in html
    screen.shown.clear()
    cs.audit_checkpoints(checkpoints)
    assert screen.shown[-1][0].startswith("audit: 3 of 3")


def test_a_bar_is_not_updated_at_every_step(screen):
    bar = environment.notebook_progress()
    bar.begin(EVIL, 0, 10_000)
    for step in range(1, 10_001):
        bar.advance(step)
    assert len(screen.shown) < 50
    assert "<img" not in screen.shown[-1][1]


def test_elsewhere_there_is_no_bar(monkeypatch):
    import IPython

    assert environment.notebook_progress() is None
    monkeypatch.setattr(IPython, "get_ipython", object)  # IPython at a terminal has no kernel
    assert environment.notebook_progress() is None
