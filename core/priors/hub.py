"""Fetching a pipeline folder from the hub, and saying in a line why that failed.

Only what belongs to the network happens here. A folder that has arrived and cannot be loaded is another fault, which
no mirror mends.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import InputError

PAGE = "https://huggingface.co"
LONGEST_LINE = 400  # characters; torch names a layer and two shapes
PROBE_S = 5.0  # patience for the hub's first answer; the clients' own retries take half a minute
WHERE = ("revision", "cache_dir", "local_files_only", "token")  # options of loading that say where files come from


class Unfetched(Exception):  # noqa: N818 (not an error of the user: the next mirror is tried)
    """A repository or file that could not be had; the message says why."""


def reachable() -> bool:
    """Whether the hub answers at all, asked once and briefly."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_S)
    except Exception:  # the clients raise many kinds, none of which is of use here
        return False
    return True


def fetch_file(repo: str, filename: str, options: Mapping[str, Any], known: Sequence[str] = ()) -> Path:
    """One file of a repository, from the cache where it is there.

    Args:
        options: see WHERE; others are ignored.
        known: repositories that a misspelt one may have meant.

    Raises Unfetched.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, filename, **{key: options[key] for key in WHERE if key in options}))
    except Exception as error:
        raise Unfetched(reason(error, repo, filename, known)) from error


def fetch_settings(repo: str, options: Mapping[str, Any], weights: bool = False) -> Path:
    """The folder of a pipeline's settings and tokenizers, with `weights` its safetensors too. Raises Unfetched."""
    patterns = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    return fetch_folder(repo, patterns, options)


def fetch_folder(repo: str, patterns: Sequence[str], options: Mapping[str, Any]) -> Path:
    """The folder of a repository's files of these patterns. Raises Unfetched."""
    from huggingface_hub import snapshot_download

    where = {key: options[key] for key in WHERE if key in options}
    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns), **where))
    except Exception as error:
        raise Unfetched(reason(error, repo, "model_index.json")) from error


def list_files(repo: str, options: Mapping[str, Any]) -> list[str]:
    """The names of a repository's files. Raises Unfetched."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(repo, revision=options.get("revision"), token=options.get("token"))
    except Exception as error:
        raise Unfetched(reason(error, repo, "")) from error


def reason(error: BaseException, repo: str, filename: str, known: Sequence[str] = ()) -> str:
    """Why the hub's client failed, and what can be done."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is gated: accept its licence at {PAGE}/{repo} and log in with `hf auth login`, or set HF_TOKEN "
            "to a token of an account that has"
        )
    near = [] if repo in known else difflib.get_close_matches(repo, known, n=3, cutoff=0.7)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo} is not on the hub, or private and needs HF_TOKEN{hint}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no such revision; see {PAGE}/{repo}/tree/main"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{repo} is not in the cache and the hub cannot be reached{hint}"
    if isinstance(error, errors.HFValidationError):
        return f"{repo} is no folder here and cannot be an id of the hub{hint}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repo} has no {filename}"
    return f"{repo}: {type(error).__name__}: {first_line(error)}"


def unfetched(name: str, failures: Iterable[str]) -> InputError:
    """What to raise when no repository of the prior `name` could be had."""
    return InputError(
        f"prior {name!r} could not be fetched ({'; '.join(failures)}). Give a local folder instead, or use the "
        f"embedded prior: --prior toybox"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next where it ends in a colon, or its kind."""
    text = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(text[: 2 if text[0].endswith(":") else 1])[:LONGEST_LINE]
