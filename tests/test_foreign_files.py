"""Files that somebody else made: pipes, devices, bombs, and names that would move a terminal."""

import io
import os
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from conescope.cli.terminal import print_table, say
from conescope.errors import CheckpointError, DataError, RecipeError
from conescope.measuring.checkpoints.probe_files import load_probe
from conescope.measuring.checkpoints.weight_files import read_weights
from conescope.measuring.texts import read_texts
from conescope.report.plot import BarPlot
from conescope.report.plotly_drawing import chart
from conescope.runs.foreign import printable, read_bounded, read_json
from conescope.training.data.mnist import load as load_mnist
from conescope.training.data.text import load as load_text
from conescope.training.recipe_reading import load_recipe


@pytest.fixture(params=["pipe", "device", "folder"])
def endless(request, tmp_path):
    """Return a function from a suffix to a path that is no regular file."""

    def make(suffix):
        path = tmp_path / f"foreign{suffix}"
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        return path

    return make


@pytest.mark.parametrize(
    ("read", "suffix", "error"),
    [
        (lambda path: load_recipe(str(path)), ".yaml", RecipeError),
        (load_probe, ".npy", DataError),
        (load_probe, ".safetensors", DataError),
        (read_texts, ".jsonl", DataError),
        (lambda path: load_text(str(path)), ".txt", DataError),
        (lambda path: read_weights([path]), ".pt", CheckpointError),
        (lambda path: read_bounded(path, DataError, 100), "", DataError),
    ],
)
def test_only_regular_files_are_read(read, suffix, error, endless):
    with pytest.raises(error, match=r"foreign.*(not a file|no file|do not exist)"):
        read(endless(suffix))


def test_a_file_is_never_read_past_its_bound(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 101)
    with pytest.raises(DataError, match="larger than 100 bytes"):
        read_bounded(tmp_path / "a", DataError, 100)
    assert len(read_bounded(tmp_path / "a", DataError, 101)) == 101
    with pytest.raises(DataError, match=r"No such file.*check the path"):
        read_bounded(tmp_path / "b", DataError, 100)
    with pytest.raises(DataError, match="check the path"):
        read_bounded("a\x00b", DataError, 100)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="too deep"):
        read_json(tmp_path / "deep.json", DataError)


def test_what_would_move_a_terminal_is_shown_as_an_escape():
    assert printable("a\x1b[31mb\u202ec\ud800\u2028\nd\té") == (
        "a\\x1b[31mb\\u202ec\\ud800\\u2028\nd\té"
    )
    assert printable("naïve Ωμέγα 数") == "naïve Ωμέγα 数"


def _header(shape, dtype="<f8", size=0):
    opened = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        opened, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return opened.getvalue() + bytes(size)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_header((10**12,)), "1000000000000.*8,000,000,000,000 bytes, and 0 are there"),
        (_header((10**30, 10**30)), "are there"),
        (_header((-1,), size=8), "are there"),
        (_header((4,), size=31), "32 bytes, and 31 are there"),
        (_header((1,), dtype="|O", size=8), "holds object"),
        (_header((1,), dtype="<U4", size=16), "not plain numbers"),
        (b"\x93NUMPY\x01\x00", "no file of plain arrays"),
        (b"\x93NUMPY\x09\x00" + bytes(9), "version"),
        (b"", "no file of plain arrays"),
        (b"PK\x03\x04 and nothing", "no file of plain arrays"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_is_compared_with_its_header_first(data, message, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", data)
    with pytest.raises(DataError, match=message):
        load_probe(path)


def test_a_bomb_of_zeros_is_not_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as opened,
    ):
        opened.write(_header((2**29,), "|u1"))
        for _ in range(2**9):
            opened.write(bytes(2**20))
    with pytest.raises(DataError, match=r"bytes that unpack to 536,87.*save tensors"):
        load_probe(tmp_path / "x.npz")


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_wrote_them(order, tmp_path):
    values = np.asarray(np.arange(12, dtype=np.float32).reshape(3, 4), order=order)
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", x=values, y=np.arange(3))
    assert torch.equal(load_probe(tmp_path / "a.npy"), torch.tensor(values))
    read = load_probe(tmp_path / "a.npz")
    assert torch.equal(read["x"], torch.tensor(values))
    assert read["y"].tolist() == [0, 1, 2]


def _encoded(picture, kind="PNG"):
    opened = io.BytesIO()
    picture.save(opened, kind)
    return opened.getvalue()


_PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
_GREY = _encoded(Image.fromarray(_PIXELS))


def _write(folder, images, labels=None, kind=None):
    labels = [0] * len(images) if labels is None else labels
    column = pyarrow.array(images) if kind is None else pyarrow.array(images, kind)
    for split in ("train", "test"):
        table = pyarrow.table({"image": column, "label": labels})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize("place", ["secret.png", "http://127.0.0.1:9/x.png", "file:///etc/passwd"])
@pytest.mark.parametrize("is_text", [False, True])
def test_no_path_or_address_in_a_file_is_opened(place, is_text, tmp_path, monkeypatch):
    (tmp_path / "secret.png").write_bytes(_GREY)
    monkeypatch.chdir(tmp_path)
    images = [place] if is_text else [{"bytes": None, "path": place}]
    kind = None if is_text else pyarrow.struct([("bytes", pyarrow.binary()), ("path", "string")])
    with pytest.raises(DataError, match=r"image 1 is not there as encoded bytes.*never opened"):
        load_mnist(_write(tmp_path, images, kind=kind))


_SIXTEEN = _encoded(Image.fromarray(np.full((28, 28), 40_000, np.uint16)))


def _bomb():
    huge = bytearray(_encoded(Image.new("1", (8, 8))))
    huge[16:24] = (50_000).to_bytes(4, "big") * 2  # width and height
    import zlib

    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    return bytes(huge)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([_SIXTEEN], None, "image 1 is of the kind I;16.*8 bits"),
        ([_bomb()], None, "image 1 (says|cannot be decoded)"),
        ([_GREY, _encoded(Image.new("L", (5, 5)))], None, "image 2 has the shape"),
        ([_GREY, _GREY[:60]], None, "image 2 cannot be decoded"),
        ([b"no image"], None, "image 1 cannot be decoded: unknown kind"),
        ([_GREY, None], None, "image 2 is not there as encoded bytes"),
        ([_GREY, _GREY], [1, None], "label of image 2 is None"),
        ([_GREY], ["seven"], "label of image 1 is 'seven'.*whole numbers"),
        ([_GREY], [1.5], "label of image 1 is 1.5"),
        ([_encoded(Image.new("CMYK", (9, 9)), "TIFF")], None, "kind CMYK"),
    ],
)
def test_images_that_cannot_be_taken_are_named(images, labels, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_mnist(_write(tmp_path, images, labels))


@pytest.mark.parametrize(
    ("picture", "pixels"),
    [
        (Image.fromarray(_PIXELS), _PIXELS[None]),
        (Image.fromarray(_PIXELS).convert("RGB"), np.stack([_PIXELS] * 3)),
        (Image.fromarray(_PIXELS > 100), np.where(_PIXELS > 100, 255, 0)[None]),
        (Image.fromarray(_PIXELS).convert("P"), np.stack([_PIXELS] * 3)),
    ],
)
def test_images_of_each_kind_keep_their_pixels(picture, pixels, tmp_path):
    data = load_mnist(_write(tmp_path, [_encoded(picture)]))
    assert np.array_equal(data.train.inputs[0].numpy(), pixels)


def test_names_stay_text_in_charts():
    name = '<a href="http://x">layer</a>'
    plot = BarPlot("title", "caption", "share", names=[name], shares={"<b>run</b>": np.ones(1)})
    [bar] = chart(plot).data
    assert bar.y[0] == '&lt;a href="http://x"&gt;layer&lt;/a&gt;'
    assert bar.name == "&lt;b&gt;run&lt;/b&gt;"


def test_names_do_not_move_the_terminal(capsys):
    say("error", "no such run \x1b]0;owned\x07")
    print_table({"class \x1b[2J": "\u202evalue"})
    told = capsys.readouterr()
    assert "\\x1b]0;owned\\x07" in told.err
    assert "\x1b" not in told.out + told.err
    assert "\\u202evalue" in told.out
