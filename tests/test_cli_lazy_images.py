"""`conescope lazy` on a folder of labelled images, with a pretrained model of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import conescope as cs
from conescope.cli import main
from conescope.errors import DataError, ModelError
from conescope.experiments.lazy import image_classifier as file
from conescope.experiments.lazy.image_classifier import image_classifier, labelled_images

transformers = pytest.importorskip("transformers")

OPTIONS = ("--lr", "0.01", "--steps", "4", "--seeds", "1", "--probe", "10", "--regression", "30")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    size = {"hidden_size": 16, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = transformers.ViTConfig(num_hidden_layers=1, num_attention_heads=2, **size)
    transformers.ViTModel(config).save_pretrained(folder)
    text = '{"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}'
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return str(folder)


def drawn(folder, count=12):
    for shade, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            mode = ("RGB", "L")[k % 2]
            values = np.full((10, 8, 3)[: 3 if mode == "RGB" else 2], 40 + 120 * shade + k, "uint8")
            Image.fromarray(values, mode).save(folder / name / f"{k:02}.png")
    (folder / "dark" / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / ".hidden").mkdir()
    return folder


def test_the_command_takes_a_folder_with_a_folder_for_each_class(tmp_path, model, capsys):
    data, test = drawn(tmp_path / "data"), drawn(tmp_path / "test", 3)
    out = tmp_path / "out"
    words = ["lazy", model, "--data", str(data), "--test", str(test), "--out", str(out), *OPTIONS]
    assert main(words) == 0
    found = " ".join(capsys.readouterr().out.split())
    assert "24 to train on, 6 to test with" in found
    assert "dark is 0, light is 1" in found
    assert "a fresh head was made for the 2 classes" in found
    assert cs.load_run(out / "seed-0").labels.unique().tolist() == [0, 1]


def test_images_are_prepared_as_the_models_processor_does(tmp_path, model):
    paths, labels = labelled_images(drawn(tmp_path / "data"))
    assert labels == ["dark"] * 12 + ["light"] * 12
    made = image_classifier(model, paths, ["dark", "light"])
    pixels = made.inputs["pixel_values"]
    assert pixels.shape == (24, 3, 8, 8)
    # the processor's own mean and spread are a half
    torch.testing.assert_close(pixels[0], torch.full((3, 8, 8), (40 / 255 - 0.5) / 0.5))
    assert made.build(0)(pixel_values=pixels[:2]).logits.shape == (2, 2)


def test_bad_folders_and_images_are_refused_in_one_line(tmp_path, model):
    with pytest.raises(DataError, match="no folder of images"):
        labelled_images(tmp_path / "nothing")
    with pytest.raises(DataError, match="put the images of each class into one"):
        labelled_images(tmp_path)
    data = drawn(tmp_path / "data")
    (data / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        labelled_images(data)
    damaged = data / "dark" / "00.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(DataError, match=r"00\.png cannot be read"):
        image_classifier(model, [damaged], ["a", "b"])


def test_images_beyond_the_memory_are_refused_before_they_are_read(tmp_path, model, monkeypatch):
    paths, _ = labelled_images(drawn(tmp_path / "data"))
    monkeypatch.setattr(file, "default_memory", lambda _: 3 * 8 * 8 * 4 * len(paths) - 1)
    with pytest.raises(DataError, match=r"24 images take .* give fewer"):
        image_classifier(model, paths, ["dark", "light"])


def test_models_that_read_no_images_are_refused_in_one_line(tmp_path, model):
    paths, _ = labelled_images(drawn(tmp_path / "data"))
    bare = tmp_path / "bare"
    transformers.ViTConfig().save_pretrained(bare)
    with pytest.raises(ModelError, match="has no image processor"):
        image_classifier(str(bare), paths, ["a", "b"])
    for name, message in (("nothing", "does not exist"), ("data", r"no config\.json")):
        with pytest.raises(ModelError, match=message):
            image_classifier(str(tmp_path / name), paths, ["a", "b"])


@pytest.mark.parametrize("option", [("--lora", "4"), ("--length", "8"), ("--text", "body")])
def test_options_of_texts_are_refused_for_images(tmp_path, model, capsys, option):
    data = drawn(tmp_path / "data")
    words = ["lazy", model, "--data", str(data), "--out", str(tmp_path / "out"), *option]
    assert main(words) != 0
    assert f"{option[0]} is for texts" in " ".join(capsys.readouterr().err.split())
