import errno
import hashlib
import os
import subprocess
import sys

import pytest
import torch

from conescope.errors import DamageWarning, StoreError
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from written_lines import EVALUATED, MEASURED


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path / "run")
    made.append(Kind.RUN, recipe={}, command="x")
    made.write_tensors(
        Kind.KERNEL, "kernels/1.safetensors", {"values": torch.arange(3.0)}, step=1, **MEASURED
    )
    return made


def test_what_was_written_is_read_bit_for_bit(folder):
    again = Folder(folder.path)
    assert again.entries(Kind.RUN)[0].values == {"recipe": {}, "command": "x"}
    (entry,) = again.files(Kind.KERNEL)
    assert entry.values["step"] == 1
    assert torch.equal(again.read_tensors(entry)["values"], torch.arange(3.0))
    assert again.is_whole(entry)


def test_numbers_and_types_survive(tmp_path):
    tensors = {
        "f64": torch.tensor([1 / 3], dtype=torch.float64),
        "i64": torch.tensor([2**62]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }
    tensors |= {"tied": tensors["i64"], "view": tensors["f64"].view(1)}
    folder = Folder(tmp_path)
    noted = {"step": 1, "seconds": 0.1 + 0.2, "param_groups": [{"a": None}]}
    folder.write_tensors(Kind.SNAPSHOT, "t.safetensors", tensors, **noted)
    (entry,) = Folder(tmp_path).files(Kind.SNAPSHOT)
    assert entry.values["seconds"] == 0.1 + 0.2
    assert entry.values["param_groups"] == [{"a": None}]
    read = Folder(tmp_path).read_tensors(entry)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_damage_is_found_and_named(folder, damage):
    file = folder.path / "kernels/1.safetensors"
    data = file.read_bytes()
    changed = {
        "flip": data[:-1] + bytes([data[-1] ^ 1]),
        "truncate": data[:-1],
        "empty": b"",
    }
    file.unlink() if damage == "delete" else file.write_bytes(changed[damage])
    (entry,) = folder.files(Kind.KERNEL)
    assert not folder.is_whole(entry)
    with pytest.raises(StoreError, match=r"kernels/1\.safetensors is (damaged|missing)"):
        folder.read_tensors(entry)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_never_happened(folder, cut):
    journal = folder.path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    torn = Folder(folder.path)
    assert torn.files(Kind.KERNEL) == []
    with torn.owned():
        torn.append(Kind.KERNEL, file="kernels/1.safetensors", sha256="0", step=1, **MEASURED)
    assert len(Folder(folder.path).entries(Kind.KERNEL)) == 1


def test_a_damaged_line_is_named_and_does_not_count(folder):
    journal = folder.path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0].replace(b'"x"', b'"y"') + lines[1])
    with pytest.warns(DamageWarning, match=r"journal\.jsonl: line 1 \(run\) is damaged"):
        again = Folder(folder.path)
    assert again.entries(Kind.RUN) == []
    assert len(again.files(Kind.KERNEL)) == 1


def test_a_line_of_a_later_version_is_an_error_that_names_it(folder):
    with (folder.path / "journal.jsonl").open("ab") as journal:
        text = b'{"kind": "forecast", "seconds": 1.0}'
        journal.write(hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n")
    with pytest.raises(StoreError, match=r"journal\.jsonl: line 3 is of the kind 'forecast'"):
        Folder(folder.path)


def test_what_was_removed_is_gone_until_it_is_written_again(folder):
    (entry,) = folder.files(Kind.KERNEL)
    folder.remove(entry)
    assert Folder(folder.path).files(Kind.KERNEL) == []
    assert not (folder.path / "kernels/1.safetensors").exists()
    folder.write_tensors(
        Kind.KERNEL, "kernels/1.safetensors", {"values": torch.ones(1)}, step=1, **MEASURED
    )
    assert len(Folder(folder.path).files(Kind.KERNEL)) == 1


def test_a_second_owner_is_turned_away_at_once(folder):
    with folder.owned():
        other = Folder(folder.path)
        assert other.is_owned()
        with pytest.raises(StoreError, match="belongs to another process that is running"):
            other.owned().__enter__()
    assert not folder.is_owned()
    with Folder(folder.path).owned():
        pass


def test_a_folder_that_cannot_be_written_has_no_owner_and_is_read(folder, monkeypatch):
    with folder.owned():
        pass

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("conescope.runs.store.FileLock.acquire", read_only)
    assert not folder.is_owned()
    assert folder.files(Kind.KERNEL) == Folder(folder.path).files(Kind.KERNEL) != []


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_and_costs_nothing(folder, monkeypatch):
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match=r"cannot write .*2\.safetensors: No space left on device"):
        folder.write_tensors(
            Kind.KERNEL, "kernels/2.safetensors", {"values": torch.ones(1)}, step=2, **MEASURED
        )
    with pytest.raises(StoreError, match=r"cannot write .*journal\.jsonl: No space left"):
        folder.append(Kind.EVALUATION, step=2, **EVALUATED)
    monkeypatch.undo()
    after = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    assert after == before
    assert Folder(folder.path).entries(Kind.EVALUATION) == []


def test_a_limit_of_the_system_in_the_middle_of_a_write(folder):
    """The kernel itself cuts a write short: the file is absent and the journal is as before."""
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from conescope.errors import StoreError\n"
        "from conescope.runs.journal import Kind\n"
        "from conescope.runs.store import Folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "folder = Folder(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    folder.write_tensors(Kind.KERNEL, 'big.safetensors', {'v': torch.ones(9999)},"
        "        step=1, seconds=0, outputs='sum')\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder.path)], capture_output=True, text=True, check=True
    )
    assert "big.safetensors: File too large" in done.stdout
    assert sorted(p.name for p in folder.path.iterdir()) == ["journal.jsonl", "kernels"]
    assert len(Folder(folder.path).files(Kind.KERNEL)) == 1


def test_a_folder_that_cannot_be_is_said(tmp_path):
    folder = Folder(tmp_path / "run")
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write .*run"):
        folder.append(Kind.RUN, recipe={}, command="x")
    with pytest.raises(StoreError, match=r"cannot write .*run"):
        folder.owned().__enter__()


def test_a_line_that_could_not_be_taken_back_is_gone_on_from(folder, monkeypatch):
    """The disk fills up, and refuses to cut the file, too: a whole line stays that nobody knows."""
    with folder.owned():
        folder.append(Kind.SKIPPED, steps=(1, 2), budget=None)
        monkeypatch.setattr(os, "fsync", refuse)
        monkeypatch.setattr(os, "ftruncate", refuse)
        with pytest.raises(StoreError, match="No space left"):
            folder.append(Kind.EVALUATION, step=2, **EVALUATED)
        monkeypatch.undo()
        folder.append(Kind.EVALUATION, step=3, **EVALUATED)
    steps = [entry.values["step"] for entry in Folder(folder.path).entries(Kind.EVALUATION)]
    assert steps == [2, 3]


def test_a_file_that_is_written_anew_with_other_bytes_is_never_named_with_a_wrong_checksum(
    folder, monkeypatch
):
    monkeypatch.setattr("conescope.runs.store.write_whole", refuse)
    with pytest.raises(StoreError):
        folder.write_file(Kind.KERNEL, "kernels/1.safetensors", b"others", step=1, **MEASURED)
    assert Folder(folder.path).files(Kind.KERNEL) == []
