"""From the record of a run to the tables of `docs/performance.md`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.problems import PROBLEMS
from benchmarks.tangent import NETWORKS, ratios

OWN = "conescope"
SECTIONS = ("benchmark", "models")
"""The parts of a page that are made from records, each between two markers."""

_EXPLANATION = """\
`time` is the median of the timed calls, the contenders taking turns in one run, each in its own \
warm process and at the fastest of its settings, which `setting` names. `peak` is the largest \
resident memory during those calls above what the process held once the model and the library \
were loaded. `error` is ‖K − K\\*‖ / ‖K\\*‖ against float64 on some of the samples, `worst` the \
largest |K_ab − K\\*_ab| / √(K\\*_aa K\\*_bb); one rectifier that flips by rounding shows there as \
1e-3. `share` is the time that conescope's count of operations, passes and products, would take at \
the machine's measured matrix-product peak, over the time taken.
"""

_STEPS = """\
A training step of `linearize(model)` (batch as given, SGD with momentum, the optimiser included) \
beside a standard step of the same network, the kinds taking turns in one process: medians of the \
rounds' ratios; and the peak of a training, in a process of its own.
"""

_ALLOCATORS = {
    "default": "As a user finds it",
    "tuned": "All with an allocator that keeps freed memory (`MALLOC_*` variables)",
}


@dataclass(frozen=True)
class Row:
    """One contender in one contest, ready to print; seconds, bytes and FLOP/s."""

    label: str
    contender: str
    setting: str
    seconds: float | None
    times: int
    peak_bytes: int | None
    error: float | None
    worst: float | None
    share: float | None
    reason: str | None


@dataclass(frozen=True)
class Contest:
    """All rows of one problem, kind of outputs and allocator."""

    problem: str
    outputs: str
    allocator: str
    floor: float | None
    rows: list[Row]

    @property
    def own(self) -> Row | None:
        """The row of conescope, if it was timed."""
        return next((r for r in self._timed() if r.contender == OWN), None)

    @property
    def fastest_peer(self) -> Row | None:
        """The fastest of the others."""
        peers = [row for row in self._timed() if row.contender != OWN]
        return min(peers, key=lambda row: row.seconds, default=None)

    @property
    def leanest_peer(self) -> Row | None:
        """The other with the least memory."""
        peers = [row for row in self._timed() if row.contender != OWN]
        return min(peers, key=lambda row: row.peak_bytes, default=None)

    def _timed(self) -> list[Row]:
        return [row for row in self.rows if row.seconds is not None]


def contests(record: dict) -> list[Contest]:
    """The record's contests, in its order."""
    return [_contest(entry) for entry in record["contests"]]


def one_contest(entry: dict) -> str:
    """The title and the table of one entry of the record."""
    return next(_details([_contest(entry)])) + "\n"


def _contest(entry: dict) -> Contest:
    results = entry["results"]
    operations = next((r["operations"] for r in results if r["operations"]), None)
    floor = operations / max(entry["peaks"]) if operations else None
    first = results[0]
    rows = [_row(result, floor) for result in results]
    return Contest(first["problem"], first["outputs"], first["allocator"], floor, rows)


def _row(result: dict, floor: float | None) -> Row:
    seconds = statistics.median(result["seconds"]) if result["seconds"] else None
    return Row(
        label=CONTENDERS[result["contender"]].label,
        contender=result["contender"],
        setting=_setting(result["option"]),
        seconds=seconds,
        times=len(result["seconds"]),
        peak_bytes=result["peak_bytes"],
        error=result["error"],
        worst=result["worst"],
        share=floor / seconds if floor and seconds else None,
        reason=result["reason"],
    )


def _setting(option: dict | None) -> str:
    words = []
    for name, value in (option or {}).items():
        if isinstance(value, bool):
            words += [name.replace("_", " ")] if value else []
        else:
            words.append(
                value.lower().replace("_", " ") if isinstance(value, str) else f"{name} {value}"
            )
    return ", ".join(words)


def markdown(record: dict, figure: str | None) -> str:
    """The whole section: machine, summary, figure, one table a contest."""
    machine, settings = record["machine"], record["settings"]
    found = contests(record)
    peak = statistics.median(p for entry in record["contests"] for p in entry["peaks"])
    parts = [
        f"{origin(machine, settings['command'])}; matrix products at "
        f"{peak / 1e9:.0f} GFLOP/s (float32, median over the run); {settings['rounds']} rounds, "
        f"{settings['limit_seconds']:g} s a call at most.",
        "## Summary",
        *_summaries(found),
        *([f"![Time to a kernel, by problem and contender]({figure})"] if figure else []),
        "## Every contender",
        _EXPLANATION.rstrip(),
        *_details(found),
        *(
            ["## Linearised training", _STEPS.rstrip(), steps(record["steps"])]
            if record["steps"]
            else []
        ),
        "## Versions",
        _versions(record),
    ]
    return "\n\n".join(parts)


def origin(machine: dict, command: str) -> str:
    """When, by which command, on which machine and with which versions numbers were measured."""
    return (
        f"Measured on {machine['date']} by `{command}`: {machine['processor']}, "
        f"{machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, torch {machine['torch']}, "
        f"Python {machine['python']}"
    )


def _summaries(found: list[Contest]) -> Iterator[str]:
    head = ("problem", "outputs", "conescope", "fastest peer", "ratio", "peak", "leanest peer")
    for allocator, group in groupby(found, key=lambda contest: contest.allocator):
        lines = [_summary_line(contest) for contest in group]
        yield f"{_ALLOCATORS[allocator]}:\n\n{table(head, lines)}"


def _summary_line(contest: Contest) -> list[str]:
    own, peer, lean = contest.own, contest.fastest_peer, contest.leanest_peer
    ratio = f"**{peer.seconds / own.seconds:.1f}×**" if own and peer else "–"
    return [
        PROBLEMS[contest.problem].label,
        contest.outputs,
        seconds(own.seconds) if own else "–",
        f"{seconds(peer.seconds)} ({peer.label})" if peer else "–",
        ratio,
        gigabytes(own.peak_bytes) if own else "–",
        f"{gigabytes(lean.peak_bytes)} ({lean.label})" if lean else "–",
    ]


def _details(found: list[Contest]) -> Iterator[str]:
    head = ("contender", "time", "calls", "peak", "error", "worst", "share", "setting")
    for contest in found:
        title = f"{PROBLEMS[contest.problem].label}, {contest.outputs}, {contest.allocator}"
        yield f"### {title}\n\n{table(head, [_detail_line(row) for row in contest.rows])}"


def _detail_line(row: Row) -> list[str]:
    if row.seconds is None:
        return [row.label, f"– ({cell(row.reason)})", "0", "–", "–", "–", "–", "–"]
    return [
        row.label,
        seconds(row.seconds),
        str(row.times),
        gigabytes(row.peak_bytes),
        f"{row.error:.0e}",
        f"{row.worst:.0e}",
        f"{row.share:.0%}" if row.share else "–",
        row.setting or "–",
    ]


def steps(entries: list[dict]) -> str:
    """The table of training steps, as multiples of the standard one."""
    lines = [
        [
            NETWORKS[entry["network"]].label,
            str(entry["batch"]),
            kind,
            seconds(statistics.median(entry["seconds"][kind])),
            f"{time:.2f}",
            f"{memory:.2f}",
        ]
        for entry in entries
        for kind, (time, memory) in ratios(entry).items()
    ]
    return table(("network", "batch", "step", "time", "× time", "× memory"), lines)


def _versions(record: dict) -> str:
    versions = {
        f"{CONTENDERS[r['contender']].package} {r['version']}"
        for entry in record["contests"]
        for r in entry["results"]
        if r["version"]
    }
    return ", ".join(sorted(versions)) + "."


def table(head: tuple[str, ...], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [list(head), ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(text: str | None, most: int = 120) -> str:
    """A text that cannot break the table, cut to its first so many characters."""
    return (text or "").replace("|", "\\|")[:most]


def seconds(value: float) -> str:
    """A time in milliseconds or seconds."""
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def gigabytes(value: int) -> str:
    """A size in GB of 10⁹ bytes."""
    return f"{value / 1e9:.2f} GB"


def fill(page: Path, text: str, section: str = "benchmark") -> None:
    """Put a section of `SECTIONS` between its two markers; make the page if there is none.

    Raises:
        ValueError: if the page lacks the markers.
    """
    new = "\n".join(["# Performance", *("\n".join(("", *_markers(s))) for s in SECTIONS), ""])
    old = page.read_text() if page.exists() else new
    begin, end = _markers(section)
    if begin not in old or end not in old:
        raise ValueError(f"{page} has no lines {begin} and {end}; put them where the tables go")
    before, rest = old.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _markers(section: str) -> tuple[str, str]:
    return f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
