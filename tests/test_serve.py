"""Runs in a browser as they go: what is shown, and to whom."""

import pytest
from starlette.testclient import TestClient

from conescope.cli import main
from conescope.experiments.session import run_experiment
from conescope.report import live
from conescope.training.recipe_reading import load_recipe


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
    journal = next(iter(live.runs_in([folder]))) / "journal.jsonl"
    journal.touch()
    browser.get(name)
    assert len(made) == 2


def test_only_these_addresses_and_only_reading(folder):
    browser = client([folder])
    for path in ("/runs/0000", "/runs/..%2f..%2fetc%2fpasswd", "/etc/passwd", "/runs/"):
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
    assert "pip install 'conescope[serve]'" in capfd.readouterr().err


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "0.0.0.0", "example.org"])
def test_a_token_is_for_other_machines_only(host, monkeypatch, capfd, tmp_path):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self: None)
    assert main(["serve", str(tmp_path), "--host", host]) == 0
    is_local = host in ("localhost", "127.0.0.1", "::1")
    assert ("?token=" in capfd.readouterr().out) != is_local
