"""Numbers in names: `1200`, and what stands for whole numbers, such as `10k` and `1.5e3`."""

from __future__ import annotations

import re
from decimal import Decimal

_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_FREE = r"(?:(?<![A-Za-z\d.])|(?<=step)|(?<=steps)|(?<=iter)|(?<=Step))"
NUMBER = re.compile(
    rf"({_FREE}\d+(?:\.\d+)?[eE]\+?\d{{1,3}}(?![A-Za-z\d])"  # 1e5, 1.5e+03
    r"|(?<!\d\.)(?<!\d)\d+(?:\.\d+)?[kKMB](?![A-Za-z\d])"  # 10k, 2.5M
    r"|\d+)",
    re.ASCII,
)
"""One number, as a group."""

_SCALED = re.compile(r"(\d+(?:\.\d+)?)([kKMB]|[eE]\+?\d{1,3})?", re.ASCII)
_LONGEST = 18


def whole(text: str) -> int | None:
    """The whole number at least 0 that a text stands for; None if it stands for none.

    `k` is 1,000, `M` 1,000,000 and `B` 1,000,000,000, so `1.5k` is 1,500, as is `1.5e3`.
    """
    match = _SCALED.fullmatch(text)
    if match is None or len(match[1]) > _LONGEST:
        return None
    scale = match[2] or ""
    power = int(scale[1:]) if scale.startswith(("e", "E")) else 0
    if power > _LONGEST:
        return None
    number = Decimal(match[1]) * 10**power * _SCALES.get(scale, 1)
    return int(number) if number == int(number) and ("." not in match[1] or scale) else None
