"""Ask the Hugging Face Hub, wait where it asks to wait, and say in one line what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of the client's HTTP library
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from conescope.errors import CheckpointError

Answer = TypeVar("Answer")

_TRIES = 5
_LONGEST_WAIT = 60.0
_PASSING = (408, 429, 500, 502, 503, 504)
_GO_ON = "what is measured stays, and the same command goes on"


def patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask the Hub again where it is busy or the connection breaks, and return its answer.

    The client does so by itself for files, but not for lists. A time to wait that the Hub names in
    `Retry-After` is kept to, up to a minute.
    """
    for attempt in range(_TRIES):
        try:
            return ask()
        except HTTPError as error:
            response = getattr(error, "response", None) if _is_answer(error) else None
            if attempt == _TRIES - 1 or (
                response is not None and response.status_code not in _PASSING
            ):
                raise
            asked = "" if response is None else response.headers.get("Retry-After", "")
            time.sleep(min(float(asked), _LONGEST_WAIT) if asked.isdecimal() else 2.0**attempt / 2)
    raise AssertionError("unreachable: the last attempt returns or raises")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the errors of the Hub's client into one of conescope's, of one line, with the cure.

    Args:
        what: the repository, with its revision if one is asked for: "org/name@step1000".

    Raises:
        CheckpointError: if the client raises an error of its own, or the system one.
    """
    try:
        yield
    except (HTTPError, EntryNotFoundError, OSError, ValueError, RuntimeError,
            TypeError, LookupError) as error:  # fmt: skip
        cause = error
        if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            cause = error.__cause__
        raise CheckpointError(_explanation(what, cause)) from error


def _explanation(what: str, error: BaseException) -> str:
    repository, endpoint = what.partition("@")[0], constants.ENDPOINT
    match error:
        case GatedRepoError():
            return (
                f"{repository} is gated; accept its terms on {endpoint}/{repository}, then log in "
                f"by 'hf auth login' or set HF_TOKEN"
            )
        case RepositoryNotFoundError():
            return _not_found(repository)
        case RevisionNotFoundError():
            return f"{what} is no longer on {endpoint}; leave it out, or run the command again"
        case DisabledRepoError():
            return f"{repository} is disabled on {endpoint}; ask its authors"
        case HfHubHTTPError():
            return _of_status(what, error)
        case OfflineModeIsEnabled():
            return f"{what} is not in the cache; unset HF_HUB_OFFLINE to download it"
        case HFValidationError():
            return f"{what} names no repository; write hf://ORGANISATION/NAME"
        case EntryNotFoundError():
            return f"{what}: a file is not there: {_first_line(error)}"
        case HTTPError():
            return (
                f"cannot reach {endpoint} for {what} ({_first_line(error)}); {_GO_ON}; for what is "
                f"in the cache already set HF_HUB_OFFLINE=1"
            )
        case TypeError() | LookupError():
            return (
                f"{endpoint} does not answer as a Hub does, asked for {what}; look at HF_ENDPOINT"
            )
        case OSError(errno=28):
            return f"no space is left for {what}; make room, or measure fewer at a time; {_GO_ON}"
        case _:
            return f"{what} was not fetched: {_first_line(error)}; {_GO_ON}"


def _of_status(what: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    repository, endpoint = what.partition("@")[0], constants.ENDPOINT
    if status == 401 and get_token() is None:
        return _not_found(repository)  # as the client says of https addresses
    if status == 401:
        return f"{endpoint} does not accept your token; log in again by 'hf auth login'"
    if status == 403:
        return (
            f"your token may not read {repository}; ask for access on {endpoint}/{repository}, or "
            f"use a token with read access to it"
        )
    if status == 429:
        return (
            f"{endpoint} takes no more requests for now ({what}); wait, or log in by 'hf auth "
            f"login' for a higher limit; {_GO_ON}"
        )
    if status == 404:
        return (
            f"{endpoint} has not all that it lists of {what} (status 404); leave it out, or tell "
            f"its authors"
        )
    return f"{endpoint} answers {what} with status {status}; try again later: {_GO_ON}"


def _not_found(repository: str) -> str:
    return (
        f"there is no repository {repository} on {constants.ENDPOINT}, or it is private; look for "
        f"a typing mistake, or log in by 'hf auth login' or set HF_TOKEN"
    )


def _is_answer(error: HTTPError) -> bool:
    """Tell an answer of the Hub from an error of the connection."""
    return isinstance(error, HfHubHTTPError)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
