"""`conescope serve`: the reports of runs in a browser, as the runs go."""

from __future__ import annotations

import argparse
import ipaddress
import secrets
from importlib.util import find_spec
from pathlib import Path

from conescope.cli.command_help import About, Group
from conescope.cli.commands import Commands
from conescope.cli.terminal import STDOUT
from conescope.errors import MissingPackageError, RecipeError, StoreError

LOCAL = "127.0.0.1"

_ABOUT = About(
    Group.MAIN,
    "show runs in a browser as they go, read only",
    (
        "conescope serve runs/",
        "conescope serve runs/mine --port 9000",
    ),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add("serve", _serve, _ABOUT)
    parser.add_argument(
        "runs",
        metavar="RUNS",
        nargs="+",
        type=Path,
        help="run folders, folders of run folders, or sweeps",
    )
    parser.add_argument("--port", type=int, default=8265, help="port to listen on (default 8265)")
    parser.add_argument(
        "--host",
        default=LOCAL,
        help="address to listen on (default 127.0.0.1, this machine only); any other needs the "
        "token that is printed",
    )


def _serve(arguments: argparse.Namespace) -> int:
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingPackageError.of(package, "serve")
    missing = [str(path) for path in arguments.runs if not path.is_dir()]
    if missing:
        raise StoreError(f"{missing[0]} is no folder; name run folders, or folders of them")
    if not 0 < arguments.port < 65536:
        raise RecipeError(f"--port is between 1 and 65535, not {arguments.port}")
    import uvicorn

    from conescope.report.live import application

    host = arguments.host
    token = None if _is_loopback(host) else secrets.token_urlsafe(16)
    hosts = ["localhost", LOCAL, "[::1]"] if token is None else ["*"]
    app = application(arguments.runs, hosts, token)
    shown = f"[{host}]" if ":" in host else host
    question = "" if token is None else f"?token={token}"
    STDOUT.print(f"http://{shown}:{arguments.port}/{question}\nCtrl-C ends it.")
    server = uvicorn.Server(
        uvicorn.Config(app, host=host, port=arguments.port, log_level="warning")
    )
    try:
        server.run()
    except SystemExit:
        raise StoreError(
            f"cannot listen on {host}:{arguments.port}; another program may use it: choose "
            f"another --port or --host"
        ) from None
    return 0


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
