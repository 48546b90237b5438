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
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"

_NEW_PAGE = f"""# Performance

{BEGIN}
{END}
"""

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
        f"Measured on {machine['date']} by `{settings['command']}`: {machine['processor']}, "
        f"{machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, torch {machine['torch']}, "
        f"Python {machine['python']}; matrix products at {peak / 1e9:.0f} GFLOP/s (float32, "
        f"median over the run); {settings['rounds']} rounds, "
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


def _summaries(found: list[Contest]) -> Iterator[str]:
    head = ("problem", "outputs", "conescope", "fastest peer", "ratio", "peak", "leanest peer")
    for allocator, group in groupby(found, key=lambda contest: contest.allocator):
        lines = [_summary_line(contest) for contest in group]
        yield f"{_ALLOCATORS[allocator]}:\n\n{_table(head, lines)}"


def _summary_line(contest: Contest) -> list[str]:
    own, peer, lean = contest.own, contest.fastest_peer, contest.leanest_peer
    ratio = f"**{peer.seconds / own.seconds:.1f}×**" if own and peer else "–"
    return [
        PROBLEMS[contest.problem].label,
        contest.outputs,
        _seconds(own.seconds) if own else "–",
        f"{_seconds(peer.seconds)} ({peer.label})" if peer else "–",
        ratio,
        _gigabytes(own.peak_bytes) if own else "–",
        f"{_gigabytes(lean.peak_bytes)} ({lean.label})" if lean else "–",
    ]


def _details(found: list[Contest]) -> Iterator[str]:
    head = ("contender", "time", "calls", "peak", "error", "worst", "share", "setting")
    for contest in found:
        title = f"{PROBLEMS[contest.problem].label}, {contest.outputs}, {contest.allocator}"
        yield f"### {title}\n\n{_table(head, [_detail_line(row) for row in contest.rows])}"


def _detail_line(row: Row) -> list[str]:
    if row.seconds is None:
        return [row.label, f"– ({_cell(row.reason)})", "0", "–", "–", "–", "–", "–"]
    return [
        row.label,
        _seconds(row.seconds),
        str(row.times),
        _gigabytes(row.peak_bytes),
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
            _seconds(statistics.median(entry["seconds"][kind])),
            f"{time:.2f}",
            f"{memory:.2f}",
        ]
        for entry in entries
        for kind, (time, memory) in ratios(entry).items()
    ]
    return _table(("network", "batch", "step", "time", "× time", "× memory"), lines)


def _versions(record: dict) -> str:
    versions = {
        f"{CONTENDERS[r['contender']].package} {r['version']}"
        for entry in record["contests"]
        for r in entry["results"]
        if r["version"]
    }
    return ", ".join(sorted(versions)) + "."


def _table(head: tuple[str, ...], lines: list[list[str]]) -> str:
    rows = [list(head), ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")[:120]


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def _gigabytes(value: int) -> str:
    return f"{value / 1e9:.2f} GB"


def fill(page: Path, text: str) -> None:
    """Put the section between the page's two markers; make the page if there is none.

    Raises:
        ValueError: if the page lacks the markers.
    """
    old = page.read_text() if page.exists() else _NEW_PAGE
    if BEGIN not in old or END not in old:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}; put them where the tables go")
    before, rest = old.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
