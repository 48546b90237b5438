"""Start a SLURM of two nodes on this machine: `python tests/slurm_cluster.py [COMMAND…]`.

It needs Debian's packages: `apt-get install slurm-wlm munge`. One `munged`, one `slurmctld` and two
`slurmd` (each is a node of one CPU) run as the user who starts them, with a configuration of their
own in a temporary folder and on free ports, beside any SLURM of the machine. In containers too:
processes are tracked through /proc, without cgroups. COMMAND, by default a shell, is run with
SLURM_CONF set; when it ends all is stopped, and the folder deleted.
"""

from __future__ import annotations

import argparse
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")

NODES = ("n1", "n2")

_WAIT_SECONDS = 60.0

_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
SlurmdTimeout=5
KillWait=3
MessageTimeout=10
ReturnToService=1
NodeName={nodes} NodeHostname={host} Port=[{ports[1]}-{ports[2]}] CPUs=1
PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Return the programs of SLURM and munge that are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class SlurmCluster:
    """A SLURM of two nodes; in a `with` block it runs, and SLURM_CONF names it.

    Attributes:
        folder: the folder of its configuration, state and logs.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._before = os.environ.get("SLURM_CONF")

    def __enter__(self) -> Self:
        try:
            self._configure()
            self._start("munged", "--foreground", "--force", *self._munge_files())
            self._await("munged", (self.folder / "munge.socket").exists)
            os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
            self._start("slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self._await("the nodes", lambda: self.states() == dict.fromkeys(NODES, "idle"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self._daemons:
            self.ask("scancel", "--signal=KILL", "--full", f"--user={_user()}")
            self.ask("scancel", f"--user={_user()}")
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline and self.ask("squeue", "--noheader"):
                time.sleep(0.2)
        for name in reversed(list(self._daemons)):
            self.kill(name, signal.SIGTERM)
        if self._before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = self._before
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *words: str) -> str:
        """Run a command of SLURM and return what it prints."""
        found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        return found.stdout.strip()

    def states(self) -> dict[str, str]:
        """Return the state of each node, such as idle, allocated or down*."""
        lines = self.ask("sinfo", "--Node", "--noheader", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start("slurmd", "-D", "-N", node, name=node)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a daemon (`munged`, `slurmctld` or a node), and wait for its end."""
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def lose_node(self, node: str) -> None:
        """Kill the daemon of a node, and all processes of its jobs, as a loss of power does."""
        marks = (self._mark(node), f"SLURMD_NODENAME={node}")
        self.kill(node)
        for mark in marks:  # those that would tell the controller first
            for place in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    known = (place / "environ").read_bytes().decode(errors="replace").split("\0")
                    if mark in known and f"SLURM_CONF={self.folder / 'slurm.conf'}" in known:
                        os.kill(int(place.name), signal.SIGKILL)

    def _mark(self, node: str) -> str:
        """Return the variable, with its value, that all daemons of a node have."""
        return f"TEST_NODE={self.folder}/{node}"

    def _start(self, program: str, *words: str, name: str | None = None) -> None:
        path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or program
        with (self.folder / f"{name or program}.out").open("ab") as output:
            self._daemons[name or program] = subprocess.Popen(
                ["env", self._mark(name or program), path, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _await(self, what: str, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not is_there():
            if time.monotonic() > deadline:
                logs = sorted(self.folder.glob("*.out"))
                said = "\n".join(f"{log.name}: {log.read_text()[-500:]}" for log in logs)
                raise RuntimeError(f"{what} did not come up in {_WAIT_SECONDS:.0f} s:\n{said}")
            time.sleep(0.1)

    def _configure(self) -> None:
        self.folder.chmod(0o755)  # munge wants a socket that everybody can reach
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        text = _CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            ports=_free_ports(3),
            user=_user(),
            folder=self.folder,
            nodes=f"n[1-{len(NODES)}]",
        )
        (self.folder / "slurm.conf").write_text(text)

    def _munge_files(self) -> list[str]:
        names = {
            "key": "munge.key",
            "pid": "munged.pid",
            "log": "munged.log",
            "seed": "munged.seed",
        }
        files = [f"--{kind}-file={self.folder / name}" for kind, name in names.items()]
        return [f"--socket={self.folder / 'munge.socket'}", *files]


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> range:
    """Return that many ports in a row that nothing listens at."""
    while True:
        first = 20000 + secrets.randbelow(10000)
        ports = range(first, first + count)
        try:
            for port in ports:
                with socket.socket() as tried:
                    tried.bind(("", port))
        except OSError:
            continue
        return ports


def main() -> int:
    """Run a command, or a shell, beside a SLURM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run (default: a shell)")
    command = parser.parse_args().command or [os.environ.get("SHELL", "sh")]
    if missing := missing_programs():
        parser.error(f"{', '.join(missing)} not found; run apt-get install slurm-wlm munge")
    with SlurmCluster():
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
