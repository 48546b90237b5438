"""Open a series to be audited: checkpoints on this machine, or revisions on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from conescope.errors import CheckpointError
from conescope.measuring.checkpoints.given_steps import Steps
from conescope.measuring.checkpoints.sources import Checkpoint, find_checkpoints
from conescope.measuring.hub import is_on_hub


@dataclass(frozen=True)
class AuditedCheckpoint:
    """A checkpoint whose files are asked for only if its fingerprint is not stored.

    Attributes:
        step: its step.
        name: what names it in messages and in the stored fingerprints.
        mark: what changes when the checkpoint does, such as the sizes and times of its files.
        files: what returns its files; it may download them.
    """

    step: int
    name: str
    mark: str
    files: Callable[[], Sequence[Path]]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> AuditedCheckpoint:
        """Return a checkpoint on this machine.

        Raises:
            CheckpointError: if a file is no longer there.
        """
        try:
            states = [file.stat() for file in checkpoint.files]
        except OSError as error:
            raise CheckpointError(
                f"cannot read {checkpoint.path}: {error.strerror}; check the path"
            ) from None
        mark = ",".join(f"{state.st_size}:{state.st_mtime_ns}" for state in states)
        name = str(checkpoint.path.absolute())
        return cls(checkpoint.step, name, mark, lambda: checkpoint.files)


@contextmanager
def opened(
    source: str | Path | Collection[str | Path],
    revisions: Sequence[str],
    step_pattern: str | None,
    steps: Steps | None,
    out: Path | None,
) -> Iterator[Sequence[AuditedCheckpoint]]:
    """Open a series; the revisions on the Hub are fetched one at a time, and deleted at the end.

    Args:
        source: see `audit_checkpoints`.
        revisions: see `audit_checkpoints`.
        step_pattern: see `audit_checkpoints`.
        steps: see `audit_checkpoints`.
        out: a folder under which revisions are put; None for a temporary one.

    Yields:
        The checkpoints, in the order of their steps.

    Raises:
        CheckpointError: as `audit_checkpoints`.
    """
    if not (isinstance(source, str | Path) and is_on_hub(source)):
        if not isinstance(source, str | Path) and any(map(is_on_hub, source)):
            raise CheckpointError(
                f"a series is one repository on the Hub, and nothing beside it; audit it alone: "
                f"{next(str(each) for each in source if is_on_hub(each))}"
            )
        if revisions:
            raise CheckpointError(
                f"{source} is not on the Hub and has no revisions; leave the pattern out"
            )
        found = find_checkpoints(source, step_pattern, steps)
        yield [AuditedCheckpoint.of(checkpoint) for checkpoint in found]
        return
    from conescope.measuring.hub.downloads import claim
    from conescope.measuring.hub.revisions import Fetcher, Revision, find_revisions

    series = find_revisions(source, revisions, step_pattern=step_pattern, steps=steps)
    place = TemporaryDirectory(prefix="conescope-") if out is None else nullcontext(str(out))
    with place as folder:
        downloads = Path(folder) / "revisions"
        claim(downloads)
        fetcher = Fetcher(series, downloads)

        def audited(revision: Revision, following: Revision | None) -> AuditedCheckpoint:
            return AuditedCheckpoint(
                revision.place.step,
                str(revision.path),
                revision.ref.commit,
                lambda: fetcher.fetch(revision, following).files,
            )

        try:
            yield [*map(audited, series.revisions, (*series.revisions[1:], None))]
        finally:
            fetcher.clear()
