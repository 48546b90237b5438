"""Whatever happens between two system calls, a run folder has all that was acknowledged, whole."""

import random
import shutil
import tempfile
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conescope.errors import DamageWarning, StoreError
from conescope.runs.journal import Kind
from conescope.runs.store import Folder
from pretend_disk import Died, PretendDisk
from written_lines import EVALUATED, MEASURED

NAMES = ("kernels/a", "kernels/b", "snapshots/c", "d")
OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 99)),
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES)),
    st.tuples(st.just("forget"), st.sampled_from(NAMES)),
    st.tuples(st.just("open")),
)


class Store(RuleBasedStateMachine):
    """Operations on a folder, of which each may be the last one of a process, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.patched, self.warned = pytest.MonkeyPatch(), warnings.catch_warnings()
        self.warned.__enter__()
        warnings.simplefilter("error", DamageWarning)
        self.disk = PretendDisk(self.place / "run", self.patched)
        self.folder, self.owned = Folder(self.place / "run"), ExitStack()
        self.acknowledged = []

    def teardown(self) -> None:
        self.owned.close()
        self.patched.undo()
        self.warned.__exit__(None, None, None)
        shutil.rmtree(self.place)

    def do(self, operation, *values) -> None:
        if operation == "open":
            self.owned.close()
            self.folder = Folder(self.place / "run")
        self.own()
        held = {entry.values["file"]: entry for entry in self.folder.files(Kind.KERNEL)}
        if operation == "append":
            self.folder.append(Kind.EVALUATION, step=values[0], **EVALUATED)
        elif operation == "write":
            self.folder.write_file(Kind.KERNEL, values[0], values[1], step=1, **MEASURED)
        elif operation in ("remove", "forget") and values[0] in held:
            getattr(self.folder, operation)(held[values[0]])

    def own(self) -> None:
        if not self.folder.is_owned():
            self.owned.close()
            self.owned.enter_context(self.folder.owned())

    @rule(operation=OPERATIONS)
    def succeed(self, operation):
        self.do(*operation)
        self.acknowledged = list(self.folder.journal.entries)

    @rule(operation=OPERATIONS, call=st.integers(1, 12), power=st.booleans(), seed=st.integers())
    def die(self, operation, call, power, seed):
        self.disk.die_at(call)
        try:
            self.do(*operation)
            self.acknowledged = list(self.folder.journal.entries)
            self.disk.die_at(1)
            self.folder.append(Kind.EVALUATION, step=-call % 7, **EVALUATED)
        except Died:
            pass
        self.disk.restart()
        self.owned.close()
        if power:
            self.disk.lose_power(random.Random(seed))
        self.folder = Folder(self.place / "run")
        found = self.folder.journal.entries
        assert found[: len(self.acknowledged)] == self.acknowledged

    @rule(operation=OPERATIONS, call=st.integers(1, 12), more=st.integers(0, 12))
    def fail(self, operation, call, more):
        self.disk.fail_at(call, call + 1 + more)
        with suppress(StoreError):
            self.do(*operation)
            self.acknowledged = list(self.folder.journal.entries)
        self.disk.restart()
        assert self.folder.journal.entries[: len(self.acknowledged)] == self.acknowledged

    @precondition(lambda self: (self.place / "run").exists())
    @invariant()
    def what_the_journal_names_is_whole(self):
        reader = Folder(self.place / "run")
        assert reader.journal.entries[: len(self.acknowledged)] == self.acknowledged
        assert reader.journal.damage == ()
        for entry in reader.files(Kind.KERNEL):
            assert reader.is_whole(entry), entry


Store.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
TestStore = Store.TestCase


@pytest.mark.parametrize("syncs", [True, False])
def test_the_pretend_disk_loses_what_is_not_synced(tmp_path, monkeypatch, syncs):
    if not syncs:
        monkeypatch.setattr("conescope.runs.store.sync_folder", lambda _: None)
        monkeypatch.setattr("conescope.runs.journal.sync_folder", lambda _: None)
    lost = []
    for seed in range(20):
        place = tmp_path / str(seed)
        place.mkdir()
        with pytest.MonkeyPatch.context() as patched:
            disk, folder = PretendDisk(place / "run", patched), Folder(place / "run")
            with folder.owned():
                folder.append(Kind.EVALUATION, step=1, **EVALUATED)
            disk.lose_power(random.Random(seed))
        lost.append(Folder(place / "run").journal.entries == [])
    assert any(lost) != syncs
