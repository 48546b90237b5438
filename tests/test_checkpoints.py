import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints import find_checkpoints, load_weights, read_weights
from conescope.measuring.checkpoints.loading import fingerprint
from conescope.measuring.checkpoints.steps import steps_of
from foreign import Malicious, found, same, state_of, touch


class Shell(Malicious):
    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", [Malicious, Shell])
@pytest.mark.parametrize("way", ["zip", "legacy", "pickle", "tensor beside", "hand-made zip"])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".safetensors"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, kind, way, suffix):
    marker = tmp_path / "marker"
    bomb = kind(marker)
    file = tmp_path / f"step1{suffix}"
    if way == "zip":
        torch.save({"w": bomb}, file)
    elif way == "tensor beside":
        torch.save(OrderedDict(state_of(small_model()), extra=bomb), file)
    elif way == "legacy":
        torch.save({"w": bomb}, file, _use_new_zipfile_serialization=False)
    elif way == "pickle":
        file.write_bytes(pickle.dumps(bomb))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(bomb, protocol=2))
            archive.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointError, match=r"refused|truncated|not opened"):
        read_weights([file])
    assert not marker.exists()
    with file.open("rb") as opened:  # it is a real one
        if way == "pickle":
            pickle.load(opened)
        else:
            torch.load(opened, weights_only=False)
    assert marker.exists()


def test_what_a_pickle_asks_for_is_named(tmp_path):
    torch.save({"w": Shell(tmp_path / "marker")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt was refused.*it asks for \w+\.system"):
        read_weights([tmp_path / "a.pt"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    whole = tmp_path / f"whole{suffix}"
    save(small_model().state_dict(), whole)
    data = whole.read_bytes()
    part = tmp_path / f"part{suffix}"
    part.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"part\..* is (empty|truncated)"):
        read_weights([part])


@pytest.fixture(scope="module")
def torch_bytes(tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "whole.pt"
    torch.save({"w": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    return file.read_bytes()


@given(places=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4))
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, torch_bytes, places):
    damaged = bytearray(torch_bytes)
    for place, value in places:
        damaged[place % len(damaged)] = value
    file = tmp_path_factory.mktemp("damaged") / "a.pt"
    file.write_bytes(damaged)
    with suppress(CheckpointError):
        assert read_weights([file]).keys()


def save(weights, file):
    weights = {name: t.detach().clone() for name, t in weights.items()}
    save_file(weights, file) if file.suffix == ".safetensors" else torch.save(weights, file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_every_kind_of_file_gives_the_same_weights(tmp_path, suffix):
    state = state_of(small_model())
    save(state, tmp_path / f"a{suffix}")
    assert same(read_weights([tmp_path / f"a{suffix}"]), state)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_inside_a_trainers_checkpoint_is_found(tmp_path, key):
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {"epoch": 3, "loss": 0.5, "optimizer": optimizer.state_dict(), "names": ["a"]}
    torch.save(content | {key: model.state_dict()}, tmp_path / "a.ckpt")
    assert same(read_weights([tmp_path / "a.ckpt"]), state_of(model))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"epoch": 3, "weights": {}}, "a dict with the keys epoch, weights"),
        ({}, "a dict"),
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a Tensor"),
        ({"state_dict": {}}, "a dict with the keys state_dict"),
        ({0: torch.ones(2)}, "a dict with the keys 0"),
    ],
)
def test_a_file_without_state_dict_says_what_it_holds(tmp_path, content, told):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"a.pt holds no state dict but {told};"):
        read_weights([tmp_path / "a.pt"])


def test_a_whole_module_and_a_torchscript_archive_are_refused(tmp_path):
    torch.save(small_model(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"asks for torch.nn.modules"):
        read_weights([tmp_path / "a.pt"])
    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"no file of weights that torch.save wrote"):
        read_weights([tmp_path / "b.pt"])


@pytest.mark.parametrize(
    "make", [lambda: torch.ones(2, device="meta"), lambda: torch.ones(3).to_sparse()]
)
def test_tensors_that_are_not_plain_are_refused(tmp_path, make):
    torch.save({"w": make()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt: w is a meta, sparse or quantised tensor"):
        read_weights([tmp_path / "a.pt"])


def test_another_precision_is_taken_over():
    model = small_model()
    load_weights(
        model,
        {n: t.double() for n, t in state_of(small_model(1)).items()}
        | {"1.num_batches_tracked": torch.tensor(3)},
        Path("a"),
    )
    assert torch.equal(model[0].weight, small_model(1)[0].weight)
    assert model[0].weight.dtype == torch.float32


def test_a_safetensors_file_without_tensors_does_not_fit(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"missing in the file \(9\)"):
        load_weights(small_model(), read_weights([tmp_path / "a.safetensors"]), Path("a"))


@pytest.mark.parametrize("theirs", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("ours", ["", "module.", "_orig_mod.", "model.", "_orig_mod.module.model."])
def test_what_wrappers_put_before_the_names_is_understood(theirs, ours):
    model = small_model()
    for name in reversed(ours.split(".")[:-1]):
        holder = nn.Module()
        holder.add_module(name, model)
        model = holder
    state = state_of(small_model(seed=1))
    load_weights(model, {theirs + name: t for name, t in state.items()}, Path("a"))
    assert same(state_of(model), {ours + name: t for name, t in state.items()})


def test_a_compiled_part_is_understood():
    state = state_of(small_model(seed=1))
    model = small_model()
    weights = {re.sub(r"^0\.", "0._orig_mod.", name): t for name, t in state.items()}
    load_weights(model, weights, Path("a"))
    assert same(state_of(model), state)


def test_a_name_that_only_looks_like_a_wrapper_stays():
    model = nn.ModuleDict({"model": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    other = nn.ModuleDict({"model": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    load_weights(model, other.state_dict(), Path("a"))
    assert same(state_of(model), state_of(other))


def test_a_real_compiled_model_and_a_real_data_parallel_one(tmp_path):
    trained = small_model(seed=1)
    for wrapped in (torch.compile(trained, backend="eager"), nn.DataParallel(trained)):
        torch.save(wrapped.state_dict(), tmp_path / "a.pt")
        model = small_model()
        load_weights(model, read_weights([tmp_path / "a.pt"]), Path("a"))
        assert same(state_of(model), state_of(trained))


def test_what_does_not_fit_is_told_and_nothing_of_it_loaded():
    model = small_model()
    before = state_of(model)
    weights = state_of(small_model(seed=1))
    del weights["0.bias"]
    weights |= {f"extra.{i}": torch.ones(1) for i in range(9)}
    weights["2.weight"] = torch.ones(2, 5)
    weights["2.bias"] = torch.ones(2, dtype=torch.int8)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, Path("ckpts/a.pt"))
    assert str(caught.value).split("; ") == [
        "ckpts/a.pt does not fit the model, and nothing of it was loaded: "
        "missing in the file (1): 0.bias",
        "unexpected in the file (9): extra.0, extra.1, extra.2, extra.3, extra.4, and 4 more",
        "of another shape or kind (2): "
        "2.weight ([2, 5] float32 in the file, [2, 4] float32 in the model), "
        "2.bias ([2] int8 in the file, [2] float32 in the model)",
        "build the model that was saved, with the same sizes",
    ]
    assert same(state_of(model), before)


def test_weights_that_are_not_finite_are_refused():
    model = small_model()
    before = state_of(model)
    weights = state_of(small_model(seed=1))
    weights["2.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"(?s)a holds NaN.*not finite \(1\): 2.weight"):
        load_weights(model, weights, Path("a"))
    assert same(state_of(model), before)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_one_name_of_a_tied_weight_is_enough():
    model, weight = Tied(), torch.randn(5, 3)
    for name in ("embed.weight", "head.weight"):
        load_weights(model, {name: weight}, Path("a"))
        assert torch.equal(model.embed.weight, weight)
        assert model.embed.weight is model.head.weight
    with pytest.raises(CheckpointError, match=r"embed.weight and head.weight are one tied"):
        load_weights(model, {"embed.weight": weight, "head.weight": weight + 1}, Path("a"))


def test_a_fingerprint_is_of_names_and_values():
    model, same_values, other = small_model(), small_model(), small_model(seed=1)
    assert fingerprint(model) == fingerprint(same_values)
    assert fingerprint(model) != fingerprint(other)
    same_values[1].running_mean += 1
    assert fingerprint(model) != fingerprint(same_values)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["a_10.pt", "a_9.pt", "a_100.pt"], [10, 9, 100]),
        (["run2/ckpt-0500.pt", "run2/ckpt-1000.pt"], [500, 1000]),
        (["run2/step10/model.pt", "run2/step9/model.pt"], [10, 9]),
        (["epoch=0-step=100.ckpt", "epoch=1-step=200.ckpt"], [100, 200]),
        (["e0_iter100_loss0.53.pt", "e1_iter200_loss0.41.pt"], [100, 200]),
        (["resnet20_5.pt", "resnet20_6.pt"], [5, 6]),
        (["checkpoint-500", "checkpoint-1000"], [500, 1000]),
        (["resnet20_step5_seed1.pt"], [5]),
        (["resnet20_5.pt"], [5]),
        (["v1.5", "v1.6"], [5, 6]),
    ],
)
def test_the_step_is_the_number_that_differs(names, steps):
    assert steps_of([Path(name) for name in names]) == steps


def test_a_pattern_tells_the_step():
    paths = [Path("x/e1_s300_l9.pt"), Path("x/e2_s200_l8.pt")]
    assert steps_of(paths, r"_s(\d+)") == [300, 200]


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        (["e1_a2.pt", "e2_a3.pt"], None, "differ in 2 numbers; give a step pattern"),
        (["best.pt", "step1.pt"], None, "best.pt has no number"),
        (["a1.pt", "b2.pt"], None, "a1.pt and b2.pt are named differently"),
        (["best.pt"], None, "best.pt has no number"),
        (["a1.pt"], "(", "cannot be read"),
        (["a1.pt"], r"\d+", "has 0 groups"),
        (["a1.pt"], r"(a)(\d)", "has 2 groups"),
        (["a1.pt"], r"b(\d+)", "finds no number in a1.pt"),
        (["a1.pt"], r"(a)", "finds no number in a1.pt"),
    ],
)
def test_a_step_that_cannot_be_told_is_an_error(names, pattern, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        steps_of([Path(name) for name in names], pattern)


def test_a_glob_a_folder_and_a_list_give_the_same_series(tmp_path):
    files = touch(tmp_path, "c9.pt", "c10.pt", "c100.pt")
    touch(tmp_path, "log.txt", ".c7.pt")
    expected = [(9, "c9.pt", 1), (10, "c10.pt", 1), (100, "c100.pt", 1)]
    assert found(f"{tmp_path}/*.pt") == found(tmp_path) == found(files) == expected
    assert found(tmp_path / "c9.pt") == expected[:1]


def test_several_folders_are_one_series(tmp_path):
    touch(tmp_path, "first/c9.pt", "first/c10.pt", "second/c100.pt", "more/c200.pt")
    series = found({tmp_path / "second", tmp_path / "first", f"{tmp_path}/more/*.pt"}, r"c(\d+)")
    assert [name for _, name, _ in series] == ["c9.pt", "c10.pt", "c100.pt", "c200.pt"]
    with pytest.raises(CheckpointError, match=r"third does not exist"):
        find_checkpoints({tmp_path / "first", tmp_path / "third"})
    (tmp_path / "third").mkdir()
    with pytest.raises(CheckpointError, match=r"third holds neither"):
        find_checkpoints({tmp_path / "first", tmp_path / "third"})


def test_a_transformers_series_is_found_by_its_folders(tmp_path):
    touch(tmp_path, "model.safetensors", "training_args.bin")
    for step in (500, 1000, 1500):
        touch(tmp_path, *(f"checkpoint-{step}/{n}" for n in ("optimizer.pt", "rng_state.pth")))
    touch(tmp_path, "checkpoint-500/model.safetensors", "checkpoint-1000/pytorch_model.bin")
    folder = tmp_path / "checkpoint-1500"
    touch(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {f"w{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    expected = [(500, "checkpoint-500", 1), (1000, "checkpoint-1000", 1)]
    expected.append((1500, "checkpoint-1500", 2))
    assert found(tmp_path) == found(f"{tmp_path}/checkpoint-*") == expected
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is missing"):
        find_checkpoints(tmp_path)


def test_shards_of_one_checkpoint_come_together(tmp_path):
    state = state_of(small_model())
    for step in (1, 2):
        for number in (1, 2):
            part = {n: t for n, t in state.items() if (n < "1") == (number == 1)}
            save_file(part, tmp_path / f"step{step}-0000{number}-of-00002.safetensors")
    series = find_checkpoints(f"{tmp_path}/*.safetensors")
    assert [(c.step, c.path.name) for c in series] == [
        (1, "step1.safetensors"),
        (2, "step2.safetensors"),
    ]
    assert same(read_weights(series[0].files), state)
    save_file(state, tmp_path / "step1-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 0\.bias, which another shard holds, too"):
        read_weights(series[0].files)
    (tmp_path / "step2-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step2-00001-of-00002.safetensors is missing"):
        find_checkpoints(f"{tmp_path}/*.safetensors")


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": "../secret.bin"}}',
              '{"weight_map": {"w": 3}}', '{"weight_map": []}', "\xff"],
)  # fmt: skip
def test_a_bad_index_is_refused(tmp_path, index):
    touch(tmp_path, "secret.bin")
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(index, encoding="latin-1")
    with pytest.raises(CheckpointError, match="is no index of shards"):
        find_checkpoints(folder)


def test_a_series_that_cannot_be_is_refused(tmp_path):
    a, b, text = touch(tmp_path, "a/c1.pt", "b/c1.pt", "notes2.txt")
    c2, c3 = touch(tmp_path, "c2.pt", "c3.pt")
    with pytest.raises(CheckpointError, match=r"b/c1.pt both have step 1"):
        find_checkpoints([a, b], r"c(\d+)")
    with pytest.raises(CheckpointError, match=r"out of order: .*c2.pt \(step 2\) comes after"):
        find_checkpoints([c3, c2])
    with pytest.raises(CheckpointError, match=r"notes2.txt is no checkpoint that"):
        find_checkpoints([text])
    with pytest.raises(CheckpointError, match=r"none7.pt does not exist"):
        find_checkpoints([tmp_path / "none7.pt"])
    with pytest.raises(CheckpointError, match=r"\*\.bin holds no checkpoint"):
        find_checkpoints(f"{tmp_path}/*.bin")
    with pytest.raises(CheckpointError, match=r"\[\] holds no checkpoint"):
        find_checkpoints([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor"):
        find_checkpoints([tmp_path / "empty"])
