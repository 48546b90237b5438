"""Shell completion, by the script that bash itself runs."""

import shutil
import subprocess

import pytest

from conescope.cli import main

COMPLETE = """
source completion.bash
COMP_WORDS=({words}) COMP_CWORD={place}
$(complete -p conescope | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def printed(shell, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", shell])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_recipes_fields_and_files(tmp_path, capsys):
    (tmp_path / "completion.bash").write_text(printed("bash", capsys))
    (tmp_path / "runs-mine").mkdir()
    for line, found in {
        "conescope co": {"cone", "compare"},
        "conescope sweep st": {"status"},
        "conescope run lenet-m": {"lenet-mnist"},
        "conescope run digits --optimizer.l": {"--optimizer.lr"},
        "conescope run digits --dynamics.kind li": {"linearised"},
        "conescope status --j": {"--json"},
        "conescope status runs-": {"runs-mine"},
        "conescope sweep digits --on sl": {"slurm"},
    }.items():
        script = COMPLETE.format(words=line, place=len(line.split()) - 1)
        out = subprocess.check_output(["bash", "-c", script], cwd=tmp_path, text=True)
        assert set(out.split()) == found, line


def test_zsh_has_a_script_too(capsys):
    script = printed("zsh", capsys)
    assert script.startswith("#compdef conescope")
    assert "--optimizer.lr" in script


def test_another_shell_is_refused_in_one_line(capsys):
    assert main(["--print-completion", "cmd"]) == 2
    assert "choose from" in capsys.readouterr().err
