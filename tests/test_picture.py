"""The README's picture is made by a command, and shows nothing of the moment it was made."""

from pathlib import Path

import pytest
from benchmarks.picture import PICTURE, make

ROOT = Path(__file__).parent.parent


@pytest.mark.rendered
def test_the_same_machine_makes_the_same_bytes(tmp_path):
    options = ["--training.steps=20", "--kernel.when=0, every 5", "--probe.size=10"]
    for name in ("one.png", "other.png"):
        make(tmp_path / name, *options)
    one, other = (tmp_path / name for name in ("one.png", "other.png"))
    assert one.read_bytes() == other.read_bytes()


def test_readme_and_first_page_show_it():
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        text = page.read_text(encoding="utf-8")
        assert f"{PICTURE.parent.name}/{PICTURE.name})" in text
