"""The steps of checkpoints: in names, and handed over where names give none."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import conescope as cs
from conescope.cli import main
from conescope.errors import CheckpointError
from conescope.measuring.checkpoints import find_checkpoints, read_steps, steps_by_epoch
from conescope.measuring.checkpoints.steps import steps_of
from foreign import found, touch

MODEL = """
from torch import nn


def build():
    return nn.Linear(3, 2)
"""
HASHES = ("3f1e5ab", "a94a8fe5", "deadbee")


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["model_5.pth.tar", "model_10.pth.tar"], [5, 10]),
        (["c1.pt.tar", "c2.pt.tar"], [1, 2]),
        (["ckpt_1k.pt", "ckpt_10k.pt", "ckpt_1M.pt", "ckpt_500.pt"], [1000, 10_000, 10**6, 500]),
        (["step1.5k", "step2k"], [1500, 2000]),
        (["llama-7B-step100.pt", "llama-7B-step2k.pt"], [100, 2000]),
        (["tokens_1B.pt", "tokens_2.5B.pt"], [10**9, 2_500_000_000]),
        (["step9-tokens1B", "step20-tokens1.5T"], [9, 20]),
        (["tokens_1.5T.pt", "tokens_900B.pt"], [1_500_000_000_000, 900_000_000_000]),
        (["seed1-step9", "seed1-step10"], [9, 10]),
        (["ckpt-1.5e3.pt", "ckpt-2e+04.pt"], [1500, 20_000]),
        (["step1e5.pt", "step2e5.pt"], [100_000, 200_000]),
        (["step_1kHz_5.pt", "step_1kHz_6.pt"], [5, 6]),
        (["step-00100-of-01000.pt", "step-00200-of-01000.pt"], [100, 200]),
        (["step-00100-of-01000.pt"], [100]),
        (["3f1e5ab_step5.pt", "a94a8fe5_step6.pt"], [5, 6]),
        (["v1.5", "v1.6"], [5, 6]),
        (["e0001000.pt", "e0002000.pt"], [1000, 2000]),
        (["exp2b.pt"], [2]),
        (["run-v1.5-step100", "run-v1.5-step200"], [100, 200]),
    ],
)
def test_the_step_in_a_name(names, steps):
    assert steps_of([Path(name) for name in names]) == steps


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["epoch=1.5.ckpt", "epoch=2.5.ckpt"], "epoch=1.5.ckpt is no whole number"),
        (["epoch_0.25.pt", "epoch_0.5.pt", "epoch_0.75.pt"], "epoch_0.25.pt is no whole number"),
        (["epoch=0.5.ckpt", "epoch=1.0.ckpt"], "epoch=0.5.ckpt is no whole number"),
        (["epoch=1.5.ckpt"], "epoch=1.5.ckpt is no whole number"),
        (["ckpt-1.5e0.pt", "ckpt-1.5e1.pt"], "ckpt-1.5e0.pt is no whole number"),
        (["last.ckpt", "step=100.ckpt"], "last.ckpt has no number"),
        (["e0.5_i10.pt", "e1.0_i20.pt"], "differ in 3 numbers"),
        (["final.pt"], "final.pt has no number"),
        (["seed1-step9", "seed2-step9"], "differ in the number behind seed, which is no step"),
        ([f"{name}.pt" for name in HASHES], "3f1e5ab.pt has no number"),
        (["3f1e5ab.pt"], "3f1e5ab.pt has no number"),
    ],
)
def test_a_name_without_a_whole_step_says_how_to_hand_it_over(names, message):
    with pytest.raises(CheckpointError) as caught:
        steps_of([Path(name) for name in names])
    assert message in str(caught.value)
    assert "steps= in Python, --steps FILE.csv" in str(caught.value)


def test_paths_from_the_root_and_from_here_go_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = touch(tmp_path, "here/c1.pt", "there/c20.pt")
    assert found([one.relative_to(tmp_path), other], r"c(\d+)") == [
        (1, "c1.pt", 1),
        (20, "c20.pt", 1),
    ]
    first, second = touch(tmp_path, "here/s1.pt", "here/s20.pt")
    assert found([first.relative_to(tmp_path), second]) == [(1, "s1.pt", 1), (20, "s20.pt", 1)]
    with pytest.raises(CheckpointError, match=r"c1.pt and .*c20.pt are named differently"):
        found([one.relative_to(tmp_path), other])


def test_a_pattern_may_find_thousands():
    assert steps_of([Path("a_7_10k.pt"), Path("a_8_1M.pt")], r"_(\d+[kM])") == [10_000, 10**6]
    with pytest.raises(CheckpointError, match=r"finds no number in a_1\.5\.pt; .*--steps"):
        steps_of([Path("a_1.5.pt")], r"_([\d.]+)\.pt")


def test_a_step_of_many_is_no_shard(tmp_path):
    touch(tmp_path, "step-00100-of-01000.pt", "step-00200-of-01000.pt")
    expected = [(100, "step-00100-of-01000.pt", 1), (200, "step-00200-of-01000.pt", 1)]
    assert found(tmp_path) == expected
    touch(tmp_path, *(f"other/step7-0000{n}-of-00003.pt" for n in (1, 2, 3)))
    assert found(tmp_path / "other") == [(7, "step7.pt", 3)]
    touch(tmp_path, "third/ckpt-00100-of-01000.pt", "third/ckpt-00200-of-01000.pt")
    with pytest.raises(CheckpointError, match=r"and 995 more are missing; copy.*or the steps"):
        find_checkpoints(tmp_path / "third")
    assert [step for step, *_ in found(tmp_path / "third", step_pattern=r"-(\d+)-of")] == [100, 200]
    assert [step for step, *_ in found(tmp_path / "third", steps=[1, 2])] == [1, 2]


@pytest.fixture
def hashes(tmp_path):
    return touch(tmp_path, *(f"{name}.pt" for name in HASHES))


@pytest.mark.parametrize("kind", ["list", "array", "names", "paths", "stems", "function", "csv"])
def test_steps_are_handed_over(tmp_path, hashes, kind):
    numbers = [300, 100, 200]
    csv = tmp_path / "steps.csv"
    csv.write_text("".join(f"{p.name},{s}\n" for p, s in zip(hashes, numbers, strict=True)))
    by_path = dict(zip(hashes, numbers, strict=True))
    source = f"{tmp_path}/*.pt"
    given = {
        "names": {path.name: step for path, step in by_path.items()},
        "paths": by_path,
        "stems": {f"{path.parent.name}/{path.name}": step for path, step in by_path.items()},
        "function": by_path.__getitem__,
        "csv": csv,
    }
    if kind in ("list", "array"):
        files = [hashes[1], hashes[2], hashes[0]]
        steps = [100, 200, 300] if kind == "list" else np.array([100, 200, 300])
        result = found(files, steps=steps)
    else:
        result = found(source, steps=given[kind])
    assert result == [
        (100, hashes[1].name, 1),
        (200, hashes[2].name, 1),
        (300, hashes[0].name, 1),
    ]


def test_a_list_of_steps_goes_with_a_folder_whose_order_is_clear(tmp_path, hashes):
    order = sorted(path.name for path in hashes)
    assert [name for _, name, _ in found(tmp_path, steps=[1, 2, 3])] == order
    touch(tmp_path, "b/a9.pt", "b/a10.pt")
    with pytest.raises(CheckpointError, match=r"the order of .*a10.pt and the others is not clear"):
        find_checkpoints(tmp_path / "b", steps=[1, 2])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([1, 2], "2 steps are given for 3 checkpoints"),
        ([1, 2, 3, 4], "4 steps are given for 3 checkpoints"),
        ([1, 2, 2.5], "is 2.5, but steps are whole numbers"),
        ([-1, 2, 3], "is -1, but steps are whole numbers"),
        ([True, 2, 3], "is True, but steps are whole numbers"),
        ([1, 2, None], "is None, but steps are whole numbers"),
        ([1, 2, "3"], "is '3', but steps are whole numbers"),
        ([1, 2, 2], "both have step 2"),
        (lambda path: path.stem, "but steps are whole numbers"),
        ({"3f1e5ab.pt": 1}, "the steps have none for"),
        ({"none.pt": 1}, "the steps name none.pt, which is none of the checkpoints"),
        ({}, "the steps have none for"),
        ({5: 1}, "the steps name 5, which is no name"),
        (5, "the steps are a int"),
        ("nowhere.csv", "nowhere.csv is no file"),
    ],
)
def test_steps_that_cannot_be_are_refused(tmp_path, hashes, steps, message):
    with pytest.raises(CheckpointError) as caught:
        find_checkpoints(tmp_path, steps=steps)
    assert message in str(caught.value)


def test_names_of_steps_are_told_apart(tmp_path):
    a, b = touch(tmp_path, "a/model.pt", "b/model.pt")
    assert [p.parent.name for _, p in
            ((c.step, c.path) for c in find_checkpoints({a, b}, steps={"a/model.pt": 2,
                                                                     "b/model.pt": 1}))
            ] == ["b", "a"]  # fmt: skip
    with pytest.raises(CheckpointError, match=r"name model.pt, which may be .*; give more of"):
        find_checkpoints({a, b}, steps={"model.pt": 1})
    with pytest.raises(CheckpointError, match=r"model.pt twice, as a/model.pt and as"):
        find_checkpoints({a, b}, steps={"a/model.pt": 1, str(a): 2, "b/model.pt": 3})
    with pytest.raises(CheckpointError, match="leave one of them out"):
        find_checkpoints({a, b}, "(1)", {"a/model.pt": 1})
    with pytest.raises(CheckpointError, match="out of order"):
        find_checkpoints([a, b], steps=[2, 1])


@pytest.mark.parametrize(
    "text",
    ["a.pt,1\nb.pt,20\n", "file,step\na.pt,1\nb.pt,20", "step,file\r\n1,a.pt\r\n20,b.pt\r\n",
     "\ufefffile,step\na.pt,1\nb.pt,20\n", "\n a.pt , 1\n\n\"b.pt\",20\n",
     "loss,name,step\n0.5,a.pt,1\n0.4,b.pt,20\n", "File,Step\na.pt,1\nb.pt,20\n"],
)  # fmt: skip
def test_a_csv_of_steps_is_read(tmp_path, text):
    (tmp_path / "s.csv").write_text(text, encoding="utf-8", newline="")
    assert read_steps(tmp_path / "s.csv") == {"a.pt": 1, "b.pt": 20}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no steps"),
        (b"file,step\n", "holds no steps"),
        (b"a.pt,1\nb.pt\n", "line 2 has 1 of 2 columns"),
        (b"a.pt;1\n", "line 1 has 1 of 2 columns"),
        (b"a.pt,1,2\n", "line 1 has 3 of 2 columns"),
        (b"a.pt,1\n\na.pt,2\n", "line 3 names a.pt, as line 1 does"),
        (b"a.pt,-1\n", "line 1 has the step '-1', which is no whole number"),
        (b"file,step\na.pt,1.5\n", "line 2 has the step '1.5'"),
        (b"file,step\na.pt\n", "line 2 has the step ''"),
        (b"a.pt,1e3\n", "line 1 has the step '1e3'"),
        (b"a.pt," + b"9" * 5000, "which is no whole number"),
        (b",5\n", "line 1 names no checkpoint"),
        (b"checkpoint,iteration\na.pt,1\n", "line 1 has the step 'iteration'"),
        (b"file,name,step\na,b,1\n", "line 1 has several columns of names"),
        (b"\xff\xfe\x00a", "is no text in UTF-8"),
        (b'"a.pt,1\n', "line 1 is no CSV"),
    ],
)
def test_a_bad_csv_is_refused_by_line(tmp_path, data, message):
    (tmp_path / "s.csv").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_steps(tmp_path / "s.csv")
    assert message in str(caught.value)
    assert "each line is a checkpoint's name and its step" in str(caught.value) or b"\xff" in data
    with pytest.raises(CheckpointError, match="is no file; give the CSV"):
        read_steps("/dev/zero")


def test_the_command_and_the_call_take_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("conescope.cli.stored.draw_figures", lambda run, path: [])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "steps_model.py").write_text(MODEL)
    probe = torch.randn(4, 3)
    np.save("p.npy", probe.numpy())
    (tmp_path / "ckpts").mkdir()
    for seed, name in enumerate(HASHES):
        torch.manual_seed(seed)
        torch.save(nn.Linear(3, 2).state_dict(), f"ckpts/{name}.pt")
    (tmp_path / "steps.csv").write_text("".join(f"{n}.pt,{i * 7}\n" for i, n in enumerate(HASHES)))
    words = ["ckpts", "--model", "steps_model:build", "--probe", "p.npy", "--out", "run"]
    assert main(["measure", *words]) == 1
    assert "--steps FILE.csv" in capsys.readouterr().err
    assert main(["measure", *words, "--steps", "steps.csv"]) == 0
    assert cs.load_run("run").series.steps == (0, 7, 14)
    run = cs.measure_checkpoints(
        nn.Linear(3, 2), "ckpts", probe, out="again", steps=lambda p: HASHES.index(p.stem)
    )
    assert run.series.steps == (0, 1, 2)
    assert main(["measure", "run", "--out", "x", "--steps", "steps.csv"]) == 2
    assert re.search("is a run, which takes no --steps", capsys.readouterr().err)


def with_trainer_state(folder, text):
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(text)
    torch.save(nn.Linear(3, 2).state_dict(), folder / "pytorch_model.bin")
    return folder


def test_the_step_that_transformers_states_counts_where_names_tell_none(tmp_path):
    for name, step in {"final": 700, "best": 300, "checkpoint-500": 500}.items():
        with_trainer_state(tmp_path / "a" / name, f'{{"global_step": {step}, "epoch": 1.5}}')
    assert [(step, name) for step, name, _ in found(tmp_path / "a")] == [
        (300, "best"),
        (500, "checkpoint-500"),
        (700, "final"),
    ]
    for name, text in {"checkpoint-1": '{"global_step": 9}', "checkpoint-2": "{}"}.items():
        with_trainer_state(tmp_path / "b" / name, text)
    assert [step for step, *_ in found(tmp_path / "b")] == [1, 2]  # the names tell them


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"global_step": "5"}', '{"global_step": -1}',
             '{"global_step": 1.5}', '{"global_step": true}'],
)  # fmt: skip
def test_a_step_that_is_stated_badly_does_not_count(tmp_path, text):
    with_trainer_state(tmp_path / "final", text)
    with_trainer_state(tmp_path / "best", '{"global_step": 5}')
    with pytest.raises(CheckpointError, match=r"(final|best) has no number"):
        find_checkpoints(tmp_path)


def test_transformers_itself_states_its_steps(tmp_path):
    transformers = pytest.importorskip("transformers")
    from foreign import small_bert

    model = small_bert(transformers.BertForSequenceClassification)
    tokens = torch.randint(0, 12, (8, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": 0} for row in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=4, save_steps=2, per_device_train_batch_size=4,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model=model, args=arguments, train_dataset=data).train()
    for number, name in ((2, "half"), (4, "whole")):
        (tmp_path / f"out/checkpoint-{number}").rename(tmp_path / "out" / name)
    assert found(tmp_path / "out") == [(2, "half", 1), (4, "whole", 1)]


def test_lightning_itself_states_its_steps(tmp_path):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Small(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def training_step(self, batch, _):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    keep = ModelCheckpoint(
        tmp_path / "c", filename="{epoch}", save_top_k=-1, save_last=True, every_n_train_steps=3
    )
    trainer = lightning.Trainer(
        max_steps=6, callbacks=[keep], logger=False, accelerator="cpu", barebones=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.randn(8, 3), batch_size=2)
    trainer.fit(Small(), loader)
    (tmp_path / "c/last.ckpt").rename(tmp_path / "c/end.ckpt")
    first = tmp_path / "c/epoch=0.ckpt"
    assert found([first, tmp_path / "c/end.ckpt"]) == [(3, first.name, 1), (6, "end.ckpt", 1)]
    trainer.save_checkpoint(tmp_path / "c/again.ckpt")
    with pytest.raises(CheckpointError, match="both have step 6"):
        find_checkpoints({tmp_path / "c/again.ckpt", tmp_path / "c/end.ckpt"})


def test_epochs_and_iterations_of_open_lth(tmp_path):
    names = [f"level_0/main/model_ep{ep}_it{it}.pth" for ep, it in ((0, 0), (0, 50), (3, 0))]
    touch(tmp_path, *names)
    glob = f"{tmp_path}/level_0/main/model_*.pth"
    with pytest.raises(CheckpointError, match=r"epoch and iteration; .*--iterations-per-epoch N"):
        find_checkpoints(glob)
    steps = [number for number, *_ in found(glob, steps=steps_by_epoch(391))]
    assert steps == [0, 50, 3 * 391]
    touch(tmp_path, *(f"level_{n}/main/model_ep160_it0.pth" for n in (1, 2)))
    assert [number for number, *_ in found(f"{tmp_path}/level_[12]/main/*.pth")] == [1, 2]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("replicate_1/main/model_ep3_it20.pth", 320), ("epoch=1.5.pt", 150), ("ep0.pt", 0),
        ("net-epoch-12.ckpt", 1200), ("Epoch_2-iter_7.pth.tar", 207), ("epochs=0.25.pt", 25),
        ("step9_ep2.pt", 200),
    ],
)  # fmt: skip
def test_a_step_that_is_counted_in_epochs(name, step):
    assert steps_by_epoch(100)(Path(name)) == step


@pytest.mark.parametrize(
    ("name", "iterations", "message"),
    [
        ("mask.pth", 100, "mask.pth names no epoch.* narrower glob"),
        ("step3.pth", 100, "names no epoch"),
        ("deep3.pth", 100, "names no epoch"),
        ("ep1_ep2.pth", 100, "or several"),
        ("epoch=1.5.pt", 99, r"1.5 epochs of 99 iterations are 148.5 iterations"),
        ("model_ep3_it100.pth", 100, "iteration 100 of an epoch, which has 100"),
        ("model_ep3_it1.pth", 0, "an epoch of 0 iterations"),
    ],
)
def test_a_step_that_cannot_be_counted_in_epochs(name, iterations, message):
    with pytest.raises(CheckpointError, match=message):
        steps_by_epoch(iterations)(Path(name))


def test_the_commands_take_the_length_of_an_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("lth_model.py").write_text(MODEL)
    np.save("x.npy", np.ones((2, 3), np.float32))
    Path("replicate_1/main").mkdir(parents=True)
    for seed, name in enumerate(("model_ep0_it0", "model_ep0_it9", "model_ep2_it1")):
        torch.manual_seed(seed)
        torch.save(nn.Linear(3, 2).state_dict(), f"replicate_1/main/{name}.pth")
    series = "replicate_1/main"
    words = [series, "--model", "lth_model:build", "--probe", "x.npy", "--out", "run"]
    epoch = ["--iterations-per-epoch", "10"]
    assert main(["measure", *words]) == 1
    assert "--iterations-per-epoch N" in capsys.readouterr().err
    assert main(["measure", *words, *epoch]) == 0
    assert cs.load_run("run").series.steps == (0, 9, 21)
    assert main(["measure", *words, *epoch, "--steps", "s.csv"]) == 2
    assert main(["measure", *words, *epoch, "--step-pattern", "ep(.)"]) == 1
    capsys.readouterr()
    assert main(["audit", series, *epoch]) == 0
    assert "step 0 to 21" in capsys.readouterr().out
