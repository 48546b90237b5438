"""A disk that loses what was not synced, and a process that dies between any two system calls.

`PretendDisk` stands between the store and the system: it counts the calls that change something
below a folder, and lets one of them fail, or be the last one of the process. The files are real.
After a failure of the power, each file and each name in a folder is as it was when it was last
synced, or as it was at the end, by chance.
"""

import errno
import os
import random
import shutil
from pathlib import Path


class Died(BaseException):
    """The process is dead: nothing after this call happened."""


class PretendDisk:
    """Patches `os` for one folder; the folder's own entry in its parent counts, too."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        self.calls = 0
        self._dies_at = self._fails_at = self._fails_until = 0
        self._dead = False
        self._paths: dict[int, Path] = {}
        self._names: dict[Path, int] = {}  # the files and folders as they are: path → identity
        self._safe_names: dict[Path, int] = {}  # … as they are on the disk
        self._safe_data: dict[int, bytes] = {}  # identity → content on the disk
        self._next = 1
        self._chance = random.Random(0)
        self._real = {}
        for name in (
            "open",
            "write",
            "fsync",
            "truncate",
            "ftruncate",
            "replace",
            "unlink",
            "mkdir",
        ):
            self._real[name] = getattr(os, name)
            monkeypatch.setattr(os, name, getattr(self, name))

    # What is to happen.

    def die_at(self, call: int) -> None:
        """Let the process die at a call, counted from now on, the first being 1."""
        self.calls, self._dies_at = 0, call

    def fail_at(self, call: int, until: int) -> None:
        """Let all calls from one to another fail, counted from now on."""
        self.calls, self._fails_at, self._fails_until = 0, call, until

    def restart(self) -> None:
        """Begin a new process, of which no call fails."""
        self.calls = self._dies_at = self._fails_at = self._fails_until = 0
        self._dead = False

    def lose_power(self, chance: random.Random) -> None:
        """Bring the folder into a state in which it may be after a failure of the power."""
        data = {i: p.read_bytes() for p, i in self._names.items() if p.is_file()}
        names: dict[Path, int] = {}
        for path in sorted({*self._names, *self._safe_names}):
            kept = chance.choice([self._names, self._safe_names]).get(path)
            if kept is not None and (path == self.folder or path.parent in names):
                names[path] = kept
        shutil.rmtree(self.folder, ignore_errors=True)
        found: dict[int, bytes] = {}
        for path, identity in names.items():
            if identity not in self._safe_data and identity not in data:
                self._real["mkdir"](path)
                continue
            safe = self._safe_data.get(identity, b"")
            now = data.get(identity, safe)
            states = [safe, now]
            if now[: len(safe)] == safe:
                states.append(now[: chance.randrange(len(safe), len(now) + 1)])
            found[identity] = chance.choice(states)
            path.write_bytes(found[identity])
        self._names, self._safe_names, self._safe_data = names, dict(names), found

    # The system calls.

    def open(self, path, flags, mode=0o777, **rest):
        file = Path(path)
        is_ours = self._is_ours(file)
        creates = is_ours and flags & os.O_CREAT and not file.exists()
        if creates or (is_ours and flags & os.O_TRUNC):
            self._call()
        descriptor = self._real["open"](path, flags, mode, **rest)
        self._paths[descriptor] = file if is_ours else Path()
        if creates:
            self._names[file] = self._new()
            self._safe_data[self._names[file]] = b""
        return descriptor

    def write(self, descriptor, data):
        if self._of(descriptor) is None:
            return self._real["write"](descriptor, data)
        try:
            self._call()
        except (OSError, Died):
            if not self._dead or self.calls == self._dies_at:  # a part of it was written
                self._real["write"](descriptor, data[: self._chance.randrange(len(data) + 1)])
            raise
        half = self._chance.randrange(1, len(data) + 1)
        return self._real["write"](descriptor, data[:half])

    def fsync(self, descriptor):
        path = self._of(descriptor)
        if path is None:
            return
        self._call()
        if path.is_dir() or path == self.folder.parent:
            mine = {p: i for p, i in self._names.items() if p.parent == path}
            self._safe_names = {p: i for p, i in self._safe_names.items() if p.parent != path}
            self._safe_names |= mine
        else:
            self._safe_data[self._names[path]] = path.read_bytes()

    def truncate(self, path, length):
        self._call()
        self._real["truncate"](path, length)

    def ftruncate(self, descriptor, length):
        if self._of(descriptor) is not None:
            self._call()
        self._real["ftruncate"](descriptor, length)

    def replace(self, source, target, **rest):
        self._call()
        self._real["replace"](source, target, **rest)
        self._names[Path(target)] = self._names.pop(Path(source))

    def unlink(self, path, **rest):
        if self._is_ours(Path(path)) and Path(path).exists():
            self._call()
            self._names.pop(Path(path))
        self._real["unlink"](path, **rest)

    def mkdir(self, path, mode=0o777, **rest):
        if self._is_ours(Path(path)):
            self._call()
        self._real["mkdir"](path, mode, **rest)
        if self._is_ours(Path(path)):
            self._names[Path(path)] = self._new()

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _is_ours(self, path: Path) -> bool:
        is_below = path == self.folder.parent or self.folder in (path, *path.parents)
        return is_below and path.name != "lock"

    def _of(self, descriptor: int) -> Path | None:
        path = self._paths.get(descriptor)
        return path if path and self._is_ours(path) else None

    def _call(self) -> None:
        self.calls += 1
        if self._dead or self.calls == self._dies_at:
            self._dead = True
            raise Died
        if self._fails_at <= self.calls < self._fails_until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
