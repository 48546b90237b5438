"""What every test shares."""

import os
from functools import wraps

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores between them
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch and numpy when they are first imported


@pytest.fixture(scope="session", autouse=True)
def _no_line_that_a_reader_refuses():
    """Whatever any test has written into a journal is what a reader takes for whole."""
    from conescope.runs.foreign import fits
    from conescope.runs.journal import Journal

    line = Journal.line

    @wraps(line)
    def checked(journal, entry):
        assert fits(entry.kind, entry.values), entry
        return line(journal, entry)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Journal, "line", checked)
        yield


@pytest.fixture(scope="session", autouse=True)
def _figures_are_laid_out_only():
    """Figures are drawn and laid out, but matplotlib writes them for tests marked `rendered` only.

    Fonts and pixels take most of the time of a command. Written instead is what a figure shows.
    What a fixture of a module makes is never rendered, whatever its tests are marked as.
    """
    from conescope.report import save
    from pretend_figures import drawn_to_be_laid_out

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(save, "draw", drawn_to_be_laid_out)
        yield


@pytest.fixture(autouse=True)
def _figures_are_rendered_where_it_matters(request, monkeypatch):
    if request.node.get_closest_marker("rendered") is not None:
        from conescope.report import matplotlib_drawing, save

        monkeypatch.setattr(save, "draw", matplotlib_drawing.draw)


TINY_OVERRIDES = (
    "--model.name=mlp",
    "--model.width=0.2",
    "--training.steps=60",
    "--training.batch_size=16",
    "--training.evaluate=0, every 20",
    "--probe.size=20",
    "--kernel.when=0, every 10",
    "--snapshots.keep=0, every 30",
    "--snapshots.resume=every 7",
)


@pytest.fixture
def tiny_overrides() -> list[str]:
    """A run of the `digits` recipe that takes about a second."""
    return list(TINY_OVERRIDES)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that the client takes for the real one, and an empty folder to work in."""
    from benchmarks.pretend_hub import PretendHub
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with PretendHub() as pretend:
        template = pretend.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", pretend.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield pretend
