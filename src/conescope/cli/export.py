"""`conescope export` and `import`: a run as one file, for other people to read and verify."""

from __future__ import annotations

import argparse
from pathlib import Path

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.json_output import add_json, print_json
from conescope.cli.progress import ProgressBar
from conescope.cli.terminal import STDERR, STDOUT, print_table
from conescope.experiments.archives.exporting import plan_export, write_archive
from conescope.experiments.archives.importing import import_run, read_contents
from conescope.experiments.stored import load_run, read_status

_ABOUT_EXPORT = About(
    Group.CARE,
    "write a run as one file that others verify",
    (
        "conescope export runs/mine --out mine.zip",
        "conescope export runs/mine --weights --branches --out whole.zip",
    ),
)

_ABOUT_IMPORT = About(
    Group.CARE,
    "unpack an archive of a run into a new folder",
    ("conescope import mine.zip --out runs/theirs",),
)


def add(commands: Commands) -> None:
    """Add the commands."""
    export = commands.add_for_run("export", _export, _ABOUT_EXPORT)
    export.add_argument(
        "--out", metavar="ZIP", type=Path, required=True, help="the archive to write"
    )
    export.add_argument("--weights", action="store_true", help="include the snapshots of weights")
    export.add_argument("--branches", action="store_true", help="include the run's branches")
    imported = commands.add("import", _import, _ABOUT_IMPORT)
    imported.add_argument("archive", metavar="ZIP", type=Path, help="what 'export' wrote")
    imported.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder to make"
    )
    for parser in (export, imported):
        add_json(parser)


def _export(arguments: argparse.Namespace) -> int:
    export = plan_export(
        arguments.run, _numbers, weights=arguments.weights, branches=arguments.branches
    )
    description = export.description
    left_out = sum(member.size or 0 for member in description.left_out.values())
    rows = {"run": description.name, "archive": f"{arguments.out}, {_size(export.size)}"}
    for kind in ("kernels", "averaged", "snapshots", "figures", "branches"):
        sizes = [m.size or 0 for n, m in description.files.items() if n.startswith(f"{kind}/")]
        if sizes:
            rows[kind] = f"{len(sizes):,} files, {_size(sum(sizes))}"
    if description.left_out:
        rows["left out"] = (
            f"{len(description.left_out):,} snapshots, {_size(left_out)}; --weights includes them"
        )
    if not arguments.json:
        print_table(rows)
    with ProgressBar(STDERR) as bar:
        write_archive(export, arguments.out, bar)
    if arguments.json:
        print_json(
            {
                "run": description.name,
                "archive": arguments.out,
                "files": len(description.files),
                "bytes": export.size,
                "left_out": len(description.left_out),
            }
        )
        return 0
    STDOUT.print(f"written: {arguments.out}", markup=False)
    return 0


def _import(arguments: argparse.Namespace) -> int:
    contents = read_contents(arguments.archive)
    if not arguments.json:
        left_out = len(contents.left_out)
        print_table(
            {
                "archive": str(arguments.archive),
                "unpacked": f"{len(contents.files):,} files, {_size(contents.size)}",
                "left out": f"{left_out:,} snapshots" if left_out else "nothing",
            }
        )
    with ProgressBar(STDERR) as bar:
        import_run(arguments.archive, arguments.out, bar)
    if arguments.json:
        print_json(
            {
                "archive": arguments.archive,
                "folder": arguments.out,
                "files": len(contents.files),
                "bytes": contents.size,
                "left_out": len(contents.left_out),
            }
        )
        return 0
    STDOUT.print(f"run: {arguments.out}", markup=False)
    return 0


def _numbers(path: Path) -> bytes | None:
    from conescope.report.derived_numbers import numbers_of

    return numbers_of(load_run(path)) if read_status(path).kernels else None


def _size(count: int) -> str:
    """Return a number of bytes as text, such as 5.9 MB."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min((len(str(count)) - 1) // 3, len(units) - 1) if count >= 1000 else 0
    return f"{count / 1000**power:.3g} {units[power]}"
