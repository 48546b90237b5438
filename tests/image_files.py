"""Write images and their classes as the Hub stores MNIST and CIFAR-10."""

import io

import numpy as np
import pytest


def write_parquet(folder, count=30, column="image", shape=(28, 28), labels=None):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    labels = [i % 10 for i in range(count)] if labels is None else labels
    features = datasets.Features({column: datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({column: encoded, "label": labels}, features=features)
    for split in ("train", "test"):
        rows.to_parquet(str(folder / f"{split}.parquet"))
    return images, labels
