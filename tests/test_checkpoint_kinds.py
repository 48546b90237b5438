"""Where in a file or a folder the weights are; and what is refused, with the cure that works."""

import argparse
import shutil
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints import find_checkpoints, load_weights, read_weights
from foreign import Malicious, same


def state():
    return nn.Linear(3, 2).state_dict()


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model_state_dict", "model", "module", "net", "network", "model_state",
     "params", "ema", "model_ema"],
)  # fmt: skip
def test_the_usual_keys_of_a_state_dict(tmp_path, key):
    weights = state()
    torch.save({"epoch": 1, "acc": torch.tensor(0.5), key: weights}, tmp_path / "model.pth.tar")
    assert same(read_weights([tmp_path / "model.pth.tar"]), weights)


def test_of_several_state_dicts_the_trained_one_is_taken_or_none(tmp_path):
    weights, average = state(), state()
    torch.save({"model_ema": average, "state_dict": weights}, tmp_path / "a1.pt")
    assert same(read_weights([tmp_path / "a1.pt"]), weights)
    torch.save({"model": weights, "net": average}, tmp_path / "a2.pt")
    with pytest.raises(CheckpointError, match=r"a2.pt holds several .* keys model, net; save the"):
        read_weights([tmp_path / "a2.pt"])
    torch.save({"ema": weights, "model_ema": average}, tmp_path / "a3.pt")
    with pytest.raises(CheckpointError, match=r"a3.pt holds several .* keys ema, model_ema"):
        read_weights([tmp_path / "a3.pt"])


def test_a_state_dict_may_hold_more_than_tensors(tmp_path):
    weights = OrderedDict(state(), _extra_state={"scales": [1.0, torch.ones(2)]})
    torch.save({"module": weights, "step": 3}, tmp_path / "a.pt")
    found = read_weights([tmp_path / "a.pt"])
    assert found["_extra_state"]["scales"][0] == 1.0
    torch.save(
        {"epoch": 3, "loss": torch.ones(()), "other": {"w": torch.ones(2)}}, tmp_path / "b.pt"
    )
    with pytest.raises(CheckpointError, match="holds no state dict but a dict with the keys epoch"):
        read_weights([tmp_path / "b.pt"])


@pytest.mark.parametrize("metadata", [[1], {"": 3}, {3: {}}, {"": {"assign_to_params_buffers": 1}}])
def test_odd_metadata_does_no_harm(tmp_path, metadata):
    weights = OrderedDict(state())
    weights._metadata = metadata
    torch.save(weights, tmp_path / "a.pt")
    model = nn.Linear(3, 2)
    before = model.weight
    load_weights(model, read_weights([tmp_path / "a.pt"]), tmp_path / "a.pt")
    assert model.weight is before
    assert torch.equal(model.weight, weights["weight"])


class Tabular(nn.Linear):
    """A module whose state dict holds a number, and a dict of tensors, under names of its own."""

    def __init__(self):
        super().__init__(3, 2)
        self.scale, self.table = 2, {"a": torch.ones(2)}

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {f"{prefix}scale": self.scale, f"{prefix}table": self.table}

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        self.scale, self.table = (state_dict.pop(prefix + name) for name in ("scale", "table"))
        super()._load_from_state_dict(state_dict, prefix, *rest)


@pytest.mark.parametrize("make", [Tabular, lambda: nn.Sequential(Tabular())])
@pytest.mark.parametrize("key", ["", "net"])
def test_a_module_with_entries_of_its_own_is_loaded(tmp_path, make, key):
    source, target = make(), make()
    last = [*source.modules()][-1]
    last.scale, last.table = 5, {"a": torch.zeros(2)}
    torch.save({key: source.state_dict()} if key else source.state_dict(), tmp_path / "a.pt")
    load_weights(target, read_weights([tmp_path / "a.pt"]), tmp_path / "a.pt")
    last = [*target.modules()][-1]
    assert (last.scale, last.table["a"].sum()) == (5, 0)
    assert torch.equal(last.weight, [*source.modules()][-1].weight)


def test_an_ending_in_tar_is_understood(tmp_path):
    for name in ("model1.pth.tar", "model2.pt.tar", "model3.ckpt.tar"):
        torch.save(state(), tmp_path / name)
    (tmp_path / "data.tar").write_bytes(b"an archive of something else")
    assert [(c.step, c.path.name) for c in find_checkpoints(tmp_path)] == [
        (1, "model1.pth.tar"),
        (2, "model2.pt.tar"),
        (3, "model3.ckpt.tar"),
    ]
    with pytest.raises(CheckpointError, match=r"data.tar is no .*name it .pt if torch.save wrote"):
        find_checkpoints([tmp_path / "data.tar"])


class Settings:
    def __init__(self):
        self.rate = 0.1


@pytest.mark.parametrize("kind", [Settings, argparse.Namespace])
def test_a_type_that_the_user_allows_is_read(tmp_path, kind):
    weights = state()
    torch.save({"args": kind(), "state_dict": weights}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        read_weights([tmp_path / "a.pt"])
    told = str(caught.value)
    assert f"it asks for {kind.__module__}.{kind.__qualname__}" in told
    assert "save the state dict alone" in told
    assert "only if you trust where the file is from" in told
    assert f"torch.serialization.add_safe_globals([{kind.__qualname__}])" in told
    with torch.serialization.safe_globals([kind]):
        assert same(read_weights([tmp_path / "a.pt"]), weights)


class Call:
    def __reduce__(self):
        return eval, ("1",)


def test_a_function_is_never_recommended(tmp_path):
    torch.save({"w": Call()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"it asks for \w*\.?eval,") as caught:
        read_weights([tmp_path / "a.pt"])
    assert "safe_globals" not in str(caught.value)


def save_distributed(content, folder):
    """Write a folder as torch.distributed.checkpoint writes it."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=folder, no_dist=True)


@pytest.fixture
def distributed(tmp_path):
    """A folder of torch.distributed.checkpoint, and the weights in it."""
    weights = state()
    save_distributed({"model": weights}, tmp_path / "out/step5")
    return tmp_path / "out/step5", weights


def test_a_distributed_checkpoint_is_read(distributed):
    folder, weights = distributed
    for source in (folder, folder.parent, [folder], str(folder)):
        (found,) = find_checkpoints(source)
        assert (found.step, found.path) == (5, folder)
        assert same(read_weights(found.files), weights)
    with pytest.raises(CheckpointError, match=r"is part of a checkpoint; give its folder, .*step5"):
        find_checkpoints([next(folder.glob("*.distcp"))])
    (folder / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"step5 lacks its list of contents, \.metadata"):
        find_checkpoints(folder.parent)


def test_of_a_training_in_a_distributed_checkpoint_the_model_is_read(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    whole = {"model": model.state_dict(), "optim": optimizer.state_dict(), "step": 3}
    for name, content in {"a": whole, "b": {"app": whole}, "c": model.state_dict()}.items():
        save_distributed(content, tmp_path / f"{name}/checkpoint-1/pytorch_model_fsdp_0")
        save_distributed({"optim": whole["optim"]}, tmp_path / f"{name}/checkpoint-1/optimizer_0")
        for source in (tmp_path / name, tmp_path / name / "checkpoint-1"):
            (found,) = find_checkpoints(source)
            assert (found.step, found.path.name) == (1, "checkpoint-1")
            assert same(read_weights(found.files), whole["model"])


def test_shards_of_several_processes_are_joined(tmp_path):
    script = Path(__file__).with_name("distributed_save.py")
    words = [sys.executable, str(script), str(tmp_path / "step7")]
    subprocess.run(words, check=True, capture_output=True)
    assert len([*(tmp_path / "step7").glob("*.distcp")]) == 2
    found = read_weights(find_checkpoints(tmp_path / "step7")[0].files)
    assert torch.equal(found["weight"], torch.arange(35.0).view(7, 5))
    assert torch.equal(found["columns"], torch.arange(35.0).view(7, 5))
    assert torch.equal(found["bias"], torch.arange(3))


ATTACKS = [
    b"cpathlib\nPath\n(S'MARKER'\ntR.touch",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0etouch MARKER\x85R.",
    b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x10open('MARKER','w')\x85R.",
    b"",
    b"\x80\x04.",
    b"\x80\x04}\x94}b.",
    b"\x80\x04h\x05.",
    b"PK\x03\x04",
]


@pytest.mark.parametrize("attack", range(len(ATTACKS)))
def test_nothing_in_a_list_of_contents_is_run(distributed, monkeypatch, attack):
    folder, _ = distributed
    monkeypatch.chdir(folder)
    (folder / ".metadata").write_bytes(ATTACKS[attack])
    with pytest.raises(CheckpointError, match=r"cannot be read|is empty"):
        read_weights(find_checkpoints(folder)[0].files)
    assert not (folder / "MARKER").exists()


def test_a_malicious_part_of_a_distributed_checkpoint_is_not_run(distributed, tmp_path):
    folder, _ = distributed
    (part,) = folder.glob("*.distcp")
    torch.save(Malicious(tmp_path / "marker"), part)
    with pytest.raises(CheckpointError, match=r"a part in __0_0.distcp cannot be read"):
        read_weights(find_checkpoints(folder)[0].files)
    assert not (tmp_path / "marker").exists()
    part.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a part in __0_0.distcp cannot be read"):
        read_weights(find_checkpoints(folder)[0].files)


def test_a_list_of_contents_names_files_beside_it_and_no_others(distributed):
    folder, _ = distributed
    data = (folder / ".metadata").read_bytes()
    name = b"__0_0.distcp"
    (folder / ".metadata").write_bytes(data.replace(name, b"../_0.distcp"))
    with pytest.raises(CheckpointError, match=r"is transformed, or not beside it"):
        read_weights(find_checkpoints(folder)[0].files)


def test_the_cure_for_a_distributed_checkpoint_works(distributed):
    folder, weights = distributed
    data = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(data[:-9])
    with pytest.raises(CheckpointError, match="format_utils dcp_to_torch") as caught:
        read_weights(find_checkpoints(folder)[0].files)
    (folder / ".metadata").write_bytes(data)
    command = str(caught.value).partition(": python ")[2].split()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (found,) = find_checkpoints([folder.with_name("step5.pt")])
    assert found.step == 5
    assert same(read_weights(found.files), weights)


SAVED = state()


def deepspeed(folder, name="mp_rank_00_model_states.pt", **more):
    """Write the states that DeepSpeed saves, with the entries of its version 0.16."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {
        "module": OrderedDict((n, v.bfloat16()) for n, v in SAVED.items()),
        "buffer_names": [], "optimizer": None, "frozen_param_shapes": None, "shared_params": {},
        "param_shapes": [OrderedDict((n, v.shape) for n, v in SAVED.items())],
        "frozen_param_fragments": None, "lr_scheduler": {"last_lr": [1e-3], "_step_count": 6},
        "data_sampler": None, "random_ltd": None, "sparse_tensor_module_names": set(),
        "skipped_steps": 0, "global_steps": 5, "global_samples": 40, "dp_world_size": 2,
        "mp_world_size": 1, "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.16.3",
    }  # fmt: skip
    torch.save(held | more, folder / name)
    (folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"not looked at")


def test_deepspeeds_folders_are_read_where_the_weights_are_whole(tmp_path):
    for step in (5, 10):
        deepspeed(tmp_path / f"out/global_step{step}")
        deepspeed(tmp_path / f"trainer/checkpoint-{step}/global_step{step}")
    for name in ("zero_to_fp32.py", "latest"):
        (tmp_path / "out" / name).write_text("global_step10")
        for step in (5, 10):
            (tmp_path / f"trainer/checkpoint-{step}" / name).write_text("")
    rounded = {name: value.bfloat16() for name, value in SAVED.items()}
    for source in ("out", "out/global_step*", "trainer", "trainer/checkpoint-*"):
        series = find_checkpoints(f"{tmp_path}/{source}")
        assert [each.step for each in series] == [5, 10]
        assert same(read_weights(series[0].files), rounded)
    for lone in ("out/global_step5", "trainer/checkpoint-5"):
        (found,) = find_checkpoints(f"{tmp_path}/{lone}")
        assert found.step == 5
    shutil.rmtree(tmp_path / "out/global_step10")
    assert [each.step for each in find_checkpoints(tmp_path / "out")] == [5]
    deepspeed(tmp_path / "bad/global_step1", client=Malicious(tmp_path / "ran"))
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        read_weights(find_checkpoints(tmp_path / "bad")[0].files)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "names",
    [
        ["zero_pp_rank_0_mp_rank_00_model_states.pt"],
        ["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"],
        ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
        ["layer_00-model_states.pt", "mp_rank_00_model_states.pt"],
        ["layer_0_expert_0_mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt"],
    ],
)
def test_deepspeeds_folders_of_parts_name_its_script(tmp_path, names):
    out = tmp_path / "out"
    for name in names:
        deepspeed(out / "global_step5", name)
    for name in ("zero_to_fp32.py", "latest"):
        (out / name).write_bytes(b"")
    for source in (out, out / "global_step5"):
        with pytest.raises(CheckpointError, match=r"of DeepSpeed.*python .*out/zero_to_fp32.py"):
            find_checkpoints(source)
    torch.save(state(), out / "pytorch_model.bin")
    assert [file.name for file in find_checkpoints([out], steps=[5])[0].files] == [
        "pytorch_model.bin"
    ]
    assert find_checkpoints(out, steps=[5])[0].path == out
