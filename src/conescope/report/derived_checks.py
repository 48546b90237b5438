"""Checks of what follows from stored kernels: numbers, the report's charts, and figures."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from conescope.errors import KernelError, TrainingError
from conescope.experiments.verifying.results import FACTOR, Result
from conescope.experiments.verifying.verdicts import Check, Verdict
from conescope.kernel.estimates import Measured
from conescope.kernel.features import Features
from conescope.kernel.series import KernelSeries
from conescope.report.derived_numbers import FILE, numbers_of
from conescope.report.figures import FIGURES
from conescope.report.page import write_report
from conescope.report.plot import Plot
from conescope.report.run_analysis import analyse
from conescope.report.save import save_plots
from conescope.report.sections import contents
from conescope.runs.reader import Run

_CHART = re.compile(r'<script type="application/json" data-chart="([^"]{1,200})">')
_ROW = re.compile(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', re.DOTALL)
_SCRIPT = re.compile(r"<script.*?</script>", re.DOTALL)
_DRAWN = re.compile(rb"Matplotlib (?:version|pdf backend v)([\w.]{1,30})")
_MOST_BYTES = 2**30
_KINDS = {
    "f8": torch.float64, "f4": torch.float32, "i8": torch.int64, "i4": torch.int32,
    "i2": torch.int16, "i1": torch.int8, "u1": torch.uint8,
}  # fmt: skip
_UNIT = torch.finfo(torch.float64).eps


def derived_checks(run: Run) -> Iterator[Check]:
    """Compute again what follows from a run's kernels, and compare it with the folder's files.

    Args:
        run: the run, with the kernels that its folder holds.
    """
    path = run.path
    with TemporaryDirectory() as made:
        fresh = Path(made)
        if (path / FILE).is_file():
            yield _compared(path / FILE, numbers_of(run), run, "all numbers and figures' data")
        if (path / "report.html").is_file():
            write_report(run, fresh / "report.html")
            page = (fresh / "report.html").read_bytes()
            yield _compared(path / "report.html", page, run, "numbers and charts")
            yield from _script_checks(path / "report.html", page)
        if (path / "figures").is_dir():
            yield from _figure_checks(run, fresh)
    if not any((path / name).exists() for name in (FILE, "report.html", "figures")):
        detail = "the folder holds no figures and no report; conescope report makes them"
        yield Check("derived", "derived numbers", Verdict.UNVERIFIED, detail)


def _compared(file: Path, fresh: bytes, run: Run, what: str) -> Check:
    subject = f"{file.name}, {what}"
    if file.stat().st_size > _MOST_BYTES:
        return Check("derived", subject, Verdict.DIFFERENT, "it is far larger than what comes out")
    stored = file.read_bytes()
    if stored == fresh:
        return Check("derived", subject, Verdict.EQUAL)
    read = _page_result if file.suffix == ".html" else _numbers_result
    try:
        before = read(stored.decode())
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        return Check("derived", subject, Verdict.DIFFERENT, "it is not as conescope writes it")
    after = read(fresh.decode())
    differs = before.difference(after)
    if differs is None:
        return Check("derived", subject, Verdict.EQUAL)
    moved = after.difference(read(_reordered(run, file.suffix).decode()))
    floor = max(moved.size if moved and moved.size < 1 else 0.0, _UNIT)
    if differs.size <= FACTOR * floor:
        detail = (
            f"by {differs.size:.1e} of its norm, where another order of the samples makes "
            f"{floor:.1e}, of which {FACTOR} times are allowed"
        )
        return Check("derived", subject, Verdict.FLOOR, detail, differs.size)
    return Check("derived", subject, Verdict.DIFFERENT, differs.text)


def _script_checks(file: Path, fresh: bytes) -> Iterator[Check]:
    """Say if a report, which may be a stranger's, has other scripts than those written here."""
    if file.stat().st_size <= _MOST_BYTES and _scripts(file.read_bytes()) != _scripts(fresh):
        detail = (
            "they are not those that this version writes, with its plotly; before you open the "
            "page of a stranger, write it again by conescope report"
        )
        yield Check("derived", f"{file.name}, its scripts", Verdict.UNVERIFIED, detail)


def _figure_checks(run: Run, folder: Path) -> Iterator[Check]:
    files = sorted((run.path / "figures").iterdir())
    stored_names = {file.stem for file in files}
    plots = {name: plot for name, plot in _plots(run).items() if name in stored_names}
    save_plots(run, plots, folder)
    for file in files:
        fresh, subject = folder / file.name, f"figures/{file.name}"
        if not fresh.is_file() or not file.is_file():
            detail = "conescope draws no such figure of this run"
            yield Check("figures", subject, Verdict.UNVERIFIED, detail)
            continue
        size = file.stat().st_size
        stored, drawn = file.read_bytes() if size < _MOST_BYTES else b"", fresh.read_bytes()
        before, now = (_DRAWN.search(data) for data in (stored, drawn))
        if stored == drawn:
            yield Check("figures", subject, Verdict.EQUAL)
        elif before and now and before[1] != now[1]:
            detail = f"drawn by matplotlib {before[1].decode()}, and here is {now[1].decode()}"
            yield Check("figures", subject, Verdict.UNVERIFIED, detail)
        else:
            detail = "another picture comes out; conescope figures draws it again"
            yield Check("figures", subject, Verdict.DIFFERENT, detail)


def _plots(run: Run) -> dict[str, Plot]:
    """Return all plots that conescope draws of a run, by the names of their files."""
    plots: dict[str, Plot] = {}
    for name, figure_of in FIGURES.items():
        with suppress(KernelError, TrainingError):  # the run is too short for it
            plots[name] = figure_of(run)
    for content in contents(analyse(run)):
        plots |= content.plots
    return plots


def _page_result(text: str) -> Result:
    """Return the rows of a report's tables, its charts' data, and the rest of its text."""
    tensors: dict[str, Tensor] = {}
    texts: dict[str, str] = {}
    decoder = json.JSONDecoder()
    for match in _CHART.finditer(text):
        drawn, _ = decoder.raw_decode(text, match.end())
        _gather(f"chart {match[1]}", drawn["data"], tensors, texts)
    for number, (name, value) in enumerate(_ROW.findall(text)):
        texts[f"{name} (row {number + 1})"] = value
    rest = _ROW.sub("", _SCRIPT.sub("", text)).splitlines()
    texts |= {f"text, line {number}": line for number, line in enumerate(rest, start=1)}
    return Result(tensors, texts)


def _scripts(page: bytes) -> bytes:
    """Return a page without what its charts show: numbers, texts of tables and base64."""
    text = _ROW.sub("", page.decode(errors="replace"))
    return re.sub(r'"bdata":"[A-Za-z0-9+/=\\]*"|-?\d[\d.e+-]*', "", text).encode()


def _numbers_result(text: str) -> Result:
    tensors: dict[str, Tensor] = {}
    texts: dict[str, str] = {}
    _gather("", json.loads(text), tensors, texts)
    return Result(tensors, texts)


def _gather(name: str, value: Any, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    """Put the numbers of nested JSON values among the tensors, and everything else as text."""
    if isinstance(value, dict) and value.keys() >= {"dtype", "bdata"}:
        data = bytearray(base64.b64decode(value["bdata"], validate=True))
        tensors[name] = torch.frombuffer(data, dtype=_KINDS[value["dtype"]])
        texts[f"{name}.shape"] = str(value.get("shape"))
    elif isinstance(value, list) and value and all(map(_is_number, value)):
        numbers = [math.nan if number is None else number for number in value]
        tensors[name] = torch.tensor(numbers, dtype=torch.float64)
    elif isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            _gather(f"{name}.{key}" if name else str(key), inner, tensors, texts)
    elif value is not None and _is_number(value):
        tensors[name] = torch.tensor([value], dtype=torch.float64)
    else:
        texts[name] = repr(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _reordered(run: Run, suffix: str) -> bytes:
    """Return numbers.json, or the report, of a run whose samples are in another order."""
    labels = run.labels if suffix == ".json" else analyse(run).labels
    order = torch.randperm(
        len(run.series.measured[0].values), generator=torch.Generator().manual_seed(0)
    )
    other = replace(
        run,
        series=_permuted(run.series, order),
        averaged=None if run.averaged is None else _permuted(run.averaged, order),
        labels=None if labels is None else labels[order],
        outputs={step: each[order] for step, each in run.outputs.items()},
        averaged_outputs={step: each[order] for step, each in run.averaged_outputs.items()},
    )
    if suffix == ".json":
        return numbers_of(other)
    with TemporaryDirectory() as made:
        return write_report(other, Path(made) / "report.html").read_bytes()


def _permuted(series: KernelSeries, order: Tensor) -> KernelSeries:
    return KernelSeries(series.steps, [_permute(one, order) for one in series.measured])


def _permute(one: Measured, order: Tensor) -> Measured:
    if isinstance(one, Features):
        return replace(one, values=one.values[order])
    columns = 2 if one.outputs == "full" else 1

    def permuted(values: Tensor) -> Tensor:
        return values[order].index_select(columns, order)

    return replace(
        one,
        values=permuted(one.values),
        by_layer={name: permuted(part) for name, part in one.by_layer.items()},
        draws=None if one.draws is None else one.draws[:, order][:, :, order],
    )
