"""Help, version and exit statuses of the command line, as a user meets them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conescope.cli import main
from conescope.cli.all_commands import all_commands
from conescope.cli.command_help import EXIT_STATUSES, Group

COMMANDS = all_commands()


def help_of(capsys, monkeypatch, *words, columns=80):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_overview_lists_each_command_once_below_its_group(capsys, monkeypatch):
    out = help_of(capsys, monkeypatch)
    group, found = None, {}
    for line in out.splitlines():
        if line.rstrip(":") in set(Group):
            group = line.rstrip(":")
        elif line == "options:":
            group = None
        elif group and (name := re.match(r"  (\w+( \w+)?)(  |$)", line)):
            assert name[1] not in found
            found[name[1]] = group
    assert found == {name: str(about.group) for name, about in COMMANDS.about.items()}
    assert list(dict.fromkeys(found.values())) == list(Group)  # none is empty
    assert "--version" in out


@pytest.mark.parametrize("name", COMMANDS.about)
def test_each_command_has_an_example_and_its_exit_statuses_in_its_help(name, capsys, monkeypatch):
    out = help_of(capsys, monkeypatch, *name.split())
    about = COMMANDS.about[name]
    assert about.examples
    for line in about.examples:
        assert f"\n  {line}\n" in out
    for status, text in {**EXIT_STATUSES, **about.ends}.items():
        assert f"\n  {status:<4} {text}\n" in out
    assert set(about.ends) <= {*EXIT_STATUSES, *({3} if name == "verify" else ())}


@pytest.mark.parametrize("name", COMMANDS.about)
@pytest.mark.parametrize("columns", [40, 80])
def test_help_fits_the_terminal_but_for_examples_and_long_words(name, columns, capsys, monkeypatch):
    _, *paragraphs = help_of(capsys, monkeypatch, *name.split(), columns=columns).split("\n\n")
    lines = [line for paragraph in paragraphs for line in paragraph.splitlines()]
    long = [line for line in lines if len(line) > columns and not line.startswith("  conescope ")]
    assert [line for line in long if len(line.split()) > 2] == []  # an option and its choices
    assert not any(word.endswith("…}") for line in lines for word in line.split()[2:])


@pytest.mark.parametrize("name", ["perturb", "switch", "barrier"])
def test_what_works_on_snapshots_says_how_to_keep_them(name, capsys, monkeypatch):
    assert "--snapshots.keep '0, 500, 2000, end'" in help_of(capsys, monkeypatch, name)


def test_the_version_needs_no_torch():
    script = "import sys; from conescope.cli import main; main(['--version']); print(*sys.modules)"
    out = subprocess.check_output([sys.executable, "-c", script], text=True)
    said, modules = out.splitlines()
    assert re.fullmatch(r"conescope \d+\.\d+\.\d+\S*", said)
    assert {"torch", "numpy", "rich"}.isdisjoint(modules.split())
    assert main(["--version"]) == 0


def test_the_exit_statuses_are_documented_in_one_place():
    page = (Path(__file__).parent.parent / "docs/command-line.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", page, re.MULTILINE))
    assert rows == {str(status): text for status, text in EXIT_STATUSES.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["stauts", "runs/mine"], "there is no command stauts; did you mean status?"),
        (["frobnicate"], "there is no command frobnicate; 'conescope --help' lists them"),
        (["status"], "required: RUN; see conescope status --help"),
        (["status", "runs/mine", "--jsn"], "unrecognized arguments: --jsn"),
        (["lazy", "model"], "the following arguments are required: --data, --out"),
        (["reproduce", "fig9", "--network", "lenet5"], "invalid choice: 'fig9'"),
        (["compare", "runs/mine"], "one run has nothing to be compared with"),
        (["serve", ".", "--port", "99999"], "--port is between 1 and 65535, not 99999"),
        (["measure", "x", "--out", "y", "--outputs", "\x1b[2J"], "not '\\x1b[2J'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(words, message, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("conescope: error: ")
    assert message in err
    assert err.count("\n") == 1
