"""`--json` of every command: one object on standard output, with the names that the docs give."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conescope.cli import main
from conescope.cli.all_commands import all_commands

COMMANDS = all_commands()

RUN = [
    "digits", "--model.name=mlp", "--model.width=0.1", "--training.steps=40",
    "--training.batch_size=16", "--training.evaluate=0, every 20", "--probe.size=10",
    "--kernel.when=0, every 5", "--snapshots.keep=0, every 20",
]  # fmt: skip

CASES = {
    "recipes": [],
    "show": ["digits"],
    "plan": [*RUN, "--kernel.outputs=sum"],
    "run": [*RUN, "--out=runs/mine"],
    "status": ["runs/mine"],
    "figures": ["runs/mine"],
    "report": ["runs/mine"],
    "measure": ["runs/mine", "--outputs=sum", "--when=every 20", "--out=runs/measured"],
    "cone": ["runs/mine"],
    "compare": ["runs/mine", "runs/measured", "--out=compared"],
    "audit": ["ckpts"],
    "sweep": [*RUN, "--seed", "1,2", "--slots=1", "--out=sweeps/seeds"],
    "sweep branch": ["runs/mine", "--at=20", "--out=sweeps/branches", "--dry-run"],
    "sweep switch": ["runs/mine", "--at=20", "--out=sweeps/switch", "--dry-run"],
    "sweep measure": ["runs/mine", "--outputs=sum,full", "--out=sweeps/kernels", "--dry-run"],
    "sweep status": ["sweeps/seeds"],
    "sweep report": ["sweeps/seeds"],
    "perturb": ["runs/mine", "--at=20", "--seeds=2"],
    "switch": ["runs/mine", "--at=20"],
    "barrier": ["runs/mine", "runs/other", "--points=3"],
    "verify": ["runs/mine", "--share=0.1"],
    "export": ["runs/mine", "--out=mine.zip"],
    "import": ["mine.zip", "--out=runs/theirs"],
}
ELSEWHERE = {"lazy", "reproduce"}  # in test_cli_lazy.py, and below


def documented():
    """Command → the names at the top of its object."""
    page = (Path(__file__).parent.parent / "docs/command-line.md").read_text()
    table = page[page.index("| command | names |") :]
    found = {}
    for commands, text in re.findall(r"^\| ([a-z, ]+) \| (.*) \|$", table, re.MULTILINE)[1:]:
        names = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)|[:;].*", "", text))
        found |= dict.fromkeys(commands.split(", "), names)
    return found


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_every_command_that_has_it_is_tried():
    has = {name for name in COMMANDS.about if "--json" in COMMANDS.parser(name).format_help()}
    assert has == set(CASES) | ELSEWHERE


def test_what_each_command_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for step in range(0, 50, 10):
        Path("ckpts").mkdir(exist_ok=True)
        save_file({"weight": torch.randn(4, 4)}, f"ckpts/step{step}.safetensors")
    found, names = {}, documented()
    assert main(["run", *RUN, "--seed=1", "--out=runs/other"]) == 0
    capsys.readouterr()
    for name, words in CASES.items():
        status = main([*name.split(), *words, "--json"])
        out, err = capsys.readouterr()
        assert status == 0, (name, err)
        found[name] = json.loads(out, parse_constant=refuse)
        assert list(found[name]) == names[name], name
    assert found["status"]["state"] == "finished"
    assert found["run"]["numbers"]["kernels"] == 9
    assert 0 < found["run"]["numbers"]["S"] < 1
    assert Path(found["run"]["report"]).stat().st_size > 1000
    assert [Path(file).suffix for file in found["figures"]["figures"][:2]] == [".pdf", ".png"]
    assert found["cone"]["runs"][0]["numbers"]["S"] == found["run"]["numbers"]["S"]
    assert found["audit"]["checkpoints"] == 5
    assert found["sweep"]["runs"] == found["sweep"]["to_do"] == 2
    assert found["sweep status"]["counts"]["finished"] == 2
    assert found["switch"]["points"] == [20]
    assert len(found["switch"]["children"]["linearised"]["test_loss"]) == 1
    assert found["verify"]["held"] is True
    assert found["import"]["files"] == found["export"]["files"]


def test_a_figure_of_the_paper_says_where_it_is(tmp_path, monkeypatch, capsys):
    from conescope.cli.reproduce import _draw_overviews

    monkeypatch.chdir(tmp_path)
    assert main(["run", *RUN, "--out=runs/mine", "--json"]) == 0
    capsys.readouterr()
    assert _draw_overviews([Path("runs/mine")], Path("runs/fig1"), "", as_json=True) == 0
    out = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert list(out) == documented()["reproduce"] == ["runs"]
    assert all(Path(file).exists() for file in out["runs"][0]["figures"])


@pytest.mark.parametrize(
    "words", [["status", "nowhere"], ["run", "nothing"], ["compare", "nowhere"]]
)
def test_a_failure_prints_no_object(words, capsys):
    assert main([*words, "--json"]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("conescope: error: ")
