"""Runs in a browser as they go: what is shown, and to whom."""

import shutil

import pytest
import torch
from starlette.testclient import TestClient

import conescope as cs
from conescope.cli import main
from conescope.experiments.session import run_experiment
from conescope.experiments.sweep.single_run import note_error
from conescope.report import live
from conescope.training.recipe_reading import load_recipe
from made_sweeps import planned, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    options = [
        "--model.name=mlp", "--model.width=0.2", "--training.steps=30", "--probe.size=10",
        "--kernel.when=0, every 10", "--training.evaluate=0, end",
    ]  # fmt: skip
    recipe = load_recipe("digits", options)
    run_experiment(recipe, folder / "<b>one", command="test")
    run_experiment(recipe, folder / "sweep" / "runs" / "two", command="test")
    return folder


def client(folders, hosts=("testserver",), token=None, **options):
    return TestClient(live.application(folders, hosts, token), **options)


def links(text):
    return [part.partition('"')[0] for part in text.split('href="')[1:]]


def test_runs_of_folders_and_of_sweeps_are_listed_and_shown(folder):
    browser = client([folder, folder / "sweep"])
    text = browser.get("/").text
    runs = [link for link in links(text) if link.startswith("/runs/")]
    assert len(runs) == 2
    assert text.count("<td>finished</td>") == 2
    assert "plotly.js" not in text
    report = browser.get(runs[0])
    assert "Iteration by iteration" in report.text
    assert "Refresh" not in report.headers


def test_names_are_escaped(folder):
    text = client([folder]).get("/").text
    assert "<b>one" not in text
    assert "&lt;b&gt;one" in text


def test_a_run_of_which_nothing_is_known_yet_says_so_and_is_asked_for_again(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "journal.jsonl").write_text("")
    browser = client([tmp_path])
    text = browser.get("/").text
    assert "holds no run" in text
    answer = browser.get(next(link for link in links(text) if link.startswith("/runs/")))
    assert "holds no run" in answer.text
    assert int(answer.headers["Refresh"]) > 0
    assert "No runs yet" in client([tmp_path / "none"]).get("/").text


def test_a_report_is_made_again_when_the_journal_has_grown(folder, monkeypatch):
    made = []
    monkeypatch.setattr(live, "report_page", lambda run: made.append(run) or "page")
    browser = client([folder])
    name = next(link for link in links(browser.get("/").text) if link.startswith("/runs/"))
    assert browser.get(name).text == browser.get(name).text == "page"
    assert len(made) == 1
    (folder / "<b>one" / "journal.jsonl").touch()
    browser.get(name)
    assert len(made) == 2


@pytest.fixture
def sweep(tmp_path):
    """A sweep of two settings, with a finished run, one that was stopped, and two that wait."""
    made = planned(tmp_path / "lr", "--optimizer.lr=0.01,0.1", "--seed=0..1", "--probe.size=6")
    write_run(made.runs[0])
    write_run(made.runs[1], end="", kernels=3)
    return made


def files_of(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_a_sweep_is_listed_and_shows_its_table_its_diagrams_and_its_runs(sweep):
    before = files_of(sweep.path)
    browser = client([sweep.path.parent])
    text = browser.get("/").text
    assert "1 finished, 1 stopped, 2 waiting" in text
    assert [link for link in links(text) if link.startswith("/runs/")] == []
    [address] = [link for link in links(text) if link.startswith("/sweeps/")]
    page = browser.get(address)
    assert int(page.headers["Refresh"]) > 0
    assert "Verdict over optimizer.lr" in page.text
    assert "1 of 4 runs have ended" in page.text
    runs = [link for link in links(page.text) if link.startswith("/runs/")]
    assert len(runs) == 2
    report = browser.get(runs[0])
    assert "Iteration by iteration" in report.text
    assert "Refresh" not in report.headers
    assert files_of(sweep.path) == before


def test_a_sweeps_page_is_made_again_when_a_run_has_grown(sweep, monkeypatch):
    made = []
    monkeypatch.setattr(live, "_page_of_sweep", lambda path: made.append(path) or "page")
    browser = client([sweep.path])
    address = next(link for link in links(browser.get("/").text) if link.startswith("/sweeps/"))
    assert browser.get(address).text == browser.get(address).text == "page"
    assert len(made) == 1
    note_error(sweep.runs[2].path, "OSError: no luck")
    browser.get(address)
    assert len(made) == 2
    for run in sweep.runs[1:]:
        write_run(run)
    assert "Refresh" not in browser.get(address).headers
    assert len(made) == 3


def test_a_damaged_sweep_says_so(sweep):
    (sweep.path / "sweep.json").write_text("{}")
    browser = client([sweep.path])
    text = browser.get("/").text
    assert "is damaged" in text
    assert len([link for link in links(text) if link.startswith("/runs/")]) == 2
    address = next(link for link in links(text) if link.startswith("/sweeps/"))
    assert "is damaged" in browser.get(address).text
    assert browser.get("/sweeps/0000").status_code == 404


def test_a_watch_is_shown_while_it_goes(tmp_path):
    torch.manual_seed(0)
    model, probe = torch.nn.Linear(3, 2), torch.randn(5, 3)
    browser = client([tmp_path])
    with cs.Watch(model, probe, when="every 1", out=tmp_path / "mine", total_steps=30) as watch:
        for step in range(1, 4):
            with torch.no_grad():
                model.weight += torch.randn(2, 3)
            watch.step(step)
        text = browser.get("/").text
        assert "<td>running</td><td>3 of 30 (10%)</td><td>3</td>" in text
        report = browser.get(next(link for link in links(text) if link.startswith("/runs/")))
        assert "unfinished: kernels up to step 3 of 30" in report.text
        assert int(report.headers["Refresh"]) > 0


def test_only_these_addresses_and_only_reading(folder):
    browser = client([folder])
    for path in (
        "/runs/0000",
        "/sweeps/..%2f..",
        "/runs/..%2f..%2fetc%2fpasswd",
        "/etc/passwd",
        "/runs/",
    ):
        assert browser.get(path).status_code == 404
    for method in (browser.post, browser.put, browser.delete):
        assert method("/").status_code == 405


def test_a_foreign_host_name_is_refused(folder):
    hosts = ("localhost", "127.0.0.1")
    assert client([folder], hosts, base_url="http://localhost").get("/").status_code == 200
    assert client([folder], hosts, base_url="http://evil.example").get("/").status_code == 400


def test_a_token_is_needed_once_and_then_kept(folder):
    browser = client([folder], token="secret")
    assert browser.get("/").status_code == 403
    assert browser.get("/?token=wrong").status_code == 403
    assert browser.get("/?token=wröng").status_code == 403
    assert browser.get("/runs/0000").status_code == browser.get("/sweeps/0000").status_code == 403
    first = browser.get("/?token=secret", follow_redirects=False)
    assert first.status_code == 303
    assert "HttpOnly" in first.headers["set-cookie"]
    assert "secret" not in first.headers["location"]
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["absent"], 1, "absent is no folder"),
        ([".", "--port", "70000"], 2, "--port is between 1 and 65535, not 70000"),
        ([".", "--host", "203.0.113.7"], 1, "cannot listen on 203.0.113.7:8265"),
    ],
)
def test_bad_words_are_one_line(words, status, said, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *words]) == status
    error = capfd.readouterr().err
    assert said in error.replace("\n", " ")
    assert "Traceback" not in error


def test_without_its_libraries_it_says_what_to_install(monkeypatch, capfd, tmp_path):
    from conescope.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["serve", str(tmp_path)]) == 1
    said = capfd.readouterr().err.replace("\n", " ")
    assert "pip install 'conescope[serve]', or in a checkout pip install '.[serve]'" in said


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "0.0.0.0", "example.org"])
def test_a_token_is_for_other_machines_only(host, monkeypatch, capfd, tmp_path):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self: None)
    assert main(["serve", str(tmp_path), "--host", host]) == 0
    is_local = host in ("localhost", "127.0.0.1", "::1")
    assert ("?token=" in capfd.readouterr().out) != is_local


def test_a_report_is_made_again_when_children_were_perturbed(folder, tmp_path):
    run = shutil.copytree(folder / "<b>one", tmp_path / "one")
    browser = client([tmp_path])
    (link,) = [link for link in links(browser.get("/").text) if link.startswith("/runs/")]
    assert "no table of perturbed children" not in browser.get(link).text
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "perturb.csv").write_text("no table")
    assert "no table of perturbed children" in browser.get(link).text
