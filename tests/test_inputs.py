import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from conescope.errors import CheckpointError, DataError
from conescope.measuring.checkpoints import load_labels, load_probe
from foreign import Malicious

TENSORS = {"ids": torch.arange(12).reshape(3, 4), "scale": torch.tensor([0.5, 1.5, 2.5])}


def save(tensors, file):
    if file.suffix == ".npz":
        np.savez(file, **{name: t.numpy() for name, t in tensors.items()})
    elif file.suffix == ".safetensors":
        save_file(tensors, file)
    elif file.suffix in (".pt", ".pth"):
        torch.save(tensors, file)
    else:
        pyarrow.parquet.write_table(pa.table({n: t.tolist() for n, t in tensors.items()}), file)


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".npz", ".pt", ".pth"])
def test_columns_become_tensors_by_name(tmp_path, suffix):
    file = tmp_path / f"probe{suffix}"
    save(TENSORS, file)
    found = load_probe(file, dtype=torch.float32)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert torch.equal(load_probe(file, ["ids"]), TENSORS["ids"])  # one alone has no name
    assert list(load_probe(file, ["scale", "ids"])) == ["scale", "ids"]
    assert load_probe(file, ["scale"], torch.float64).dtype == torch.float64
    with pytest.raises(DataError, match="has no labels; it has ids, scale"):
        load_probe(file, ["ids", "labels"])


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".npz", ".pt"])
def test_a_column_of_labels_is_no_input(tmp_path, suffix):
    file, classes = tmp_path / f"probe{suffix}", torch.tensor([2, 0, 1])
    save({**TENSORS, "y": classes}, file)
    assert torch.equal(load_labels(file, "y"), classes)
    assert load_probe(file, labels="y").keys() == TENSORS.keys()
    assert load_probe(file, ["ids", "y"], labels="y").keys() == {"ids", "y"}  # named by the user
    with pytest.raises(DataError, match=r"has no z; it has ids, .*y"):
        load_labels(file, "z")


def test_a_single_array(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", values)
    torch.save(torch.from_numpy(values), tmp_path / "a.pt")
    pyarrow.parquet.write_table(pa.table({"x": values.tolist()}), tmp_path / "a.parquet")
    for suffix in (".npy", ".pt", ".parquet"):
        found = load_probe(tmp_path / f"a{suffix}", dtype=torch.float32)
        assert torch.equal(found, torch.from_numpy(values))


@pytest.mark.parametrize(
    "column",
    [
        [[1, 2], [3]],
        [1, None],
        [[1.0], [None]],
        ["a", "b"],
        [b"a", b"b"],
        [{"bytes": b"", "path": "a.png"}],
    ],
)
def test_a_column_that_is_no_array_of_numbers_is_refused(tmp_path, column):
    pyarrow.parquet.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: x is no array of numbers with rows of one"):
        load_probe(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors", ".parquet"])
@pytest.mark.parametrize("way", ["objects", "pickle"])
def test_a_malicious_file_is_refused_and_does_not_run(tmp_path, suffix, way):
    marker, file = tmp_path / "marker", tmp_path / f"a{suffix}"
    bombs = np.array([Malicious(marker)], dtype=object)
    with file.open("wb") as opened:
        if way == "pickle":
            pickle.dump(bombs, opened)
        elif suffix == ".npz":
            np.savez(opened, x=bombs)
        else:
            np.save(opened, bombs, allow_pickle=True)
    with pytest.raises((DataError, CheckpointError), match=r"a\.\w+"):
        load_probe(file)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors", ".parquet"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises((DataError, CheckpointError), match=r"a\.\w+"):
        load_probe(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("content", [[torch.ones(2)], {0: torch.ones(2)}, 3])
def test_a_torch_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match="save a tensor, or tensors by name"):
        load_probe(tmp_path / "a.pt")


def test_a_file_without_columns_or_of_another_kind(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="is empty"):
        load_probe(tmp_path / "a.safetensors")
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match="of no known kind"):
        load_probe(tmp_path / "a.csv")
    with pytest.raises(DataError, match="does not exist"):
        load_probe(tmp_path / "b.npy")
