import gzip
import subprocess
import sys
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from conescope.errors import DataError
from conescope.runs.parquet_tables import read_parquet
from conescope.training.data import digits as digits_file
from conescope.training.data.augmentation import flip_and_crop
from conescope.training.data.dataset import Split, _load, load_data
from conescope.training.data.sampling import BatchOrder, Normalizer, choose_probe, seed_for
from conescope.training.recipe_fields import DataRecipe, ProbeRecipe
from image_files import write_parquet


@pytest.fixture(scope="module")
def digits():
    return load_data(DataRecipe())


def test_digits_are_those_that_scikit_learn_loads_and_splits(digits):
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    held = (digits.train.inputs, digits.test.inputs, digits.train.labels, digits.test.labels)
    for part, tensor in zip(parts, held, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), part)


def test_digits_whose_file_is_missing_or_damaged_are_a_clear_error(monkeypatch, tmp_path):
    module = tmp_path / "sklearn" / "__init__.py"
    file = module.parent / "datasets" / "data" / "digits.csv.gz"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(digits_file, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"has the digits, is not installed; pip install"):
        digits_file.load()
    spec = ModuleSpec("sklearn", None, origin=str(module))
    monkeypatch.setattr(digits_file, "find_spec", lambda _: spec)
    whole = gzip.compress(b"0,1\n" * 3)
    for content in (
        None,
        b"",
        whole,
        whole[:-9],
        b"0,1\n",
        gzip.compress(b"\xff"),
        whole[:12] + whole,
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged or missing .* pip install --force") as caught:
            digits_file.load()
        assert "\n" not in str(caught.value)


def test_a_column_twice_and_values_out_of_range_are_a_clear_error(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    write_parquet(tmp_path)
    table = parquet.read_table(tmp_path / "train.parquet")
    parquet.write_table(table.append_column("when", pa.array([2**55] * 30, pa.timestamp("ms"))),
                        tmp_path / "train.parquet")  # fmt: skip
    assert len(load_data(DataRecipe("mnist", str(tmp_path))).train) == 30
    with pytest.raises(DataError, match=r"damaged one: .*; copy it again"):
        read_parquet(tmp_path / "train.parquet")
    parquet.write_table(table.append_column("label", table["label"]), tmp_path / "test.parquet")
    _load.cache_clear()
    with pytest.raises(DataError, match=r"two columns label; .* data\.path is a folder"):
        load_data(DataRecipe("mnist", str(tmp_path)))


def test_commands_digits_and_the_cone_load_no_library_that_is_slow_to_load():
    code = (
        "import sys, conescope as cs, conescope.cli.all_commands\n"
        "from conescope.training.data.dataset import load_data\n"
        "from conescope.training.recipe_fields import DataRecipe\n"
        "load_data(DataRecipe())\n"
        "import conescope.statistics.cone.intervals, conescope.statistics.cone.seeds\n"
        "import conescope.statistics.cone.phases, conescope.statistics.cone.of_estimates\n"
        "print([name for name in ('sklearn', 'scipy.stats', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_local_folder_is_read_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    images, labels = write_parquet(tmp_path)
    data = load_data(DataRecipe("mnist", str(tmp_path)))
    np.testing.assert_array_equal(data.train.inputs[:, 0].numpy(), images)
    assert data.test.labels.tolist() == labels


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_few_images_are_decoded_and_repeated_beside_all_labels(tmp_path):
    images, labels = write_parquet(tmp_path)
    data = load_data(DataRecipe("mnist", str(tmp_path)), most_decoded=4)
    repeated = np.stack([images[place % 4] for place in range(30)])
    np.testing.assert_array_equal(data.train.inputs[:, 0].numpy(), repeated)
    assert data.train.labels.tolist() == labels
    assert np.array_equal(load_data(DataRecipe("mnist", str(tmp_path))).train.inputs[:, 0], images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_colour_images_have_their_channels_first(tmp_path):
    images, _ = write_parquet(tmp_path, column="img", shape=(32, 32, 3))
    data = load_data(DataRecipe("cifar10", str(tmp_path)))
    np.testing.assert_array_equal(data.train.inputs.permute(0, 2, 3, 1).numpy(), images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_layout_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.parquet does not exist; data\.path is a folder"):
        load_data(DataRecipe("mnist", str(tmp_path)))
    write_parquet(tmp_path, column="img")
    with pytest.raises(DataError, match=r"has the columns img, label, and lacks image; add it"):
        load_data(DataRecipe("mnist", str(tmp_path)))
    write_parquet(tmp_path, labels=[11] * 30)
    with pytest.raises(DataError, match=r"labels must lie in 0 … 9"):
        load_data(DataRecipe("mnist", str(tmp_path)))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"train\.parquet is no parquet file, or a damaged one: "):
        load_data(DataRecipe("mnist", str(tmp_path)))
    with pytest.raises(DataError, match=r"data\.path is .*, and digits takes none"):
        load_data(DataRecipe("digits", str(tmp_path)))


def test_inputs_have_mean_0_and_deviation_1(digits):
    inputs = Normalizer(digits.train.inputs, torch.float64)(digits.train.inputs)
    assert float(inputs.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(inputs.std(correction=0)) == pytest.approx(1.0, abs=1e-12)
    assert inputs.shape == digits.train.inputs.shape


def test_an_epoch_shows_every_image_once_in_a_new_order():
    order = BatchOrder(count=103, batch_size=10, seed=1)
    assert order.iterations_per_epoch == 11
    epochs = [torch.cat([order(11 * e + i) for i in range(11)]) for e in range(2)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(103))
    assert epochs[0].tolist() != epochs[1].tolist()
    again = BatchOrder(count=103, batch_size=10, seed=1)
    assert again(15).tolist() == order(15).tolist()
    assert BatchOrder(103, 10, seed=2)(0).tolist() != order(0).tolist()
    with pytest.raises(DataError, match="only 5 training samples"):
        BatchOrder(count=5, batch_size=10, seed=0)


def test_with_replacement_every_batch_is_drawn_from_all_samples():
    order = BatchOrder(count=103, batch_size=10, seed=1, replacement=True)
    assert order.iterations_per_epoch == 11
    assert order.smallest(steps=1000) == 10
    batches = torch.stack([order(step) for step in range(5000)])
    repeats = [10 - len(set(batch.tolist())) for batch in batches]
    expected = 10 - 103 * (1 - (102 / 103) ** 10)  # of 10 independent draws from 103
    assert sum(repeats) / len(repeats) == pytest.approx(expected, abs=0.05)
    counts = torch.bincount(batches.flatten(), minlength=103).double()
    mean = 50_000 / 103
    assert float(((counts - mean) ** 2 / mean).sum()) < 150  # χ² of 102: 0.13 % lie above
    assert torch.equal(
        order(15), BatchOrder(count=103, batch_size=10, seed=1, replacement=True)(15)
    )
    assert not torch.equal(order(15), order(16))


def test_flip_and_crop_is_a_shift_of_the_image_or_its_mirror():
    images = torch.arange(1, 1 + 50 * 3 * 12 * 12).remainder(251).to(torch.uint8) + 1
    images = images.reshape(50, 3, 12, 12)
    changed = flip_and_crop(images, seed=3)
    assert changed.shape == images.shape
    padded = torch.nn.functional.pad(images, [4] * 4)
    seen = set()
    for before, after in zip(padded, changed, strict=True):
        places = [
            (flip, row, column)
            for flip in (False, True)
            for row in range(9)
            for column in range(9)
            if torch.equal(
                before[:, row : row + 12, column : column + 12].flip(2)
                if flip
                else before[:, row : row + 12, column : column + 12],
                after,
            )
        ]
        assert len(places) >= 1
        seen.add(places[0])
    assert len(seen) > 25
    assert torch.equal(changed, flip_and_crop(images, seed=3))
    assert not torch.equal(changed, flip_and_crop(images, seed=4))


def test_a_stratified_probe_has_as_many_of_each_class(digits):
    chosen = choose_probe(digits.train, ProbeRecipe(size=205), digits.classes, seed=0)
    counts = torch.bincount(digits.train.labels[chosen], minlength=10)
    assert len(set(chosen.tolist())) == 205
    assert sorted(set(counts.tolist())) == [20, 21]
    other = choose_probe(digits.train, ProbeRecipe(size=205), digits.classes, seed=1)
    assert chosen.tolist() != other.tolist()


def test_a_probe_larger_than_the_data_is_refused(digits):
    with pytest.raises(DataError, match=r"probe\.size is 5000, but the train split has only 1437"):
        choose_probe(digits.train, ProbeRecipe(size=5000), 10, seed=0)
    lopsided = Split(digits.train.inputs[:20], torch.zeros(20, dtype=torch.int64))
    with pytest.raises(DataError, match=r"needs 1 samples of class 1, but the train split has 0"):
        choose_probe(lopsided, ProbeRecipe(size=10), 10, seed=0)
    plain = ProbeRecipe(size=10, stratified=False)
    assert len(choose_probe(lopsided, plain, 10, seed=0)) == 10


def test_seeds_differ_by_purpose_and_index_and_never_change():
    seeds = {seed_for(s, p, i) for s in range(3) for p in ("a", "b") for i in range(3)}
    assert len(seeds) == 18
    assert seed_for(0, "order", 0) == 3955691223199900983
