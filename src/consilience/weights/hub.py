"""Models of the hub, by name: fetched into the hub's cache on this machine, or found there."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consilience.errors import BackendError


def fetch(name: str, patterns: Sequence[str], revision: str = "") -> Path:
    """The folder of the model `name` in the hub's cache, with its files that match `patterns`.

    Raises `BackendError` where it cannot be had: one line for a name that the hub does not have, a model that it keeps
    closed, a hub that is not reached, and a download that broke off. Files that arrived whole stay in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    whole = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*patterns]))
    except HFValidationError:
        why, advice = "that is no name of a model", "Give a local folder, or a hub name (owner/model)."
    except GatedRepoError:
        why = "its owner wants its terms accepted first"
        advice = "Accept them on its page, log in by 'hf auth login', then give the same command again."
    except RepositoryNotFoundError:
        why = "it has no model of that name, or keeps it private"
        advice = "Give another name, or log in by 'hf auth login'."
    except RevisionNotFoundError:
        why, advice = f"it has no revision {revision!r} of that model", "Give another one after the '@'."
    except LocalEntryNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set, and the hub's cache on this machine does not hold all of it"
            advice = f"Give a local folder, or 'hf download {name}' where there is a network."
        else:
            why = f"it is not reached ({_line(cause or error)})"
            advice = (
                "Give a local folder, or the same command again where there is a network: files that arrived whole "
                "are kept."
            )
    except broken_connections() as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # a full disk is said in the same words wherever it fills up
        raise BackendError(
            f"the download of model {whole!r} broke off ({_line(error)}). "
            "Give the same command again: files that arrived whole are kept."
        ) from None
    raise BackendError(f"model {whole!r} is no local folder and cannot be fetched from the hub: {why}. {advice}")


def broken_connections() -> Any:
    """What is raised where a connection to the hub breaks, by huggingface_hub 1 (httpx), 2 (httpx2) and hf_xet.

    The HTTP client's errors are the base of huggingface_hub's own; hf_xet's are OSError and RuntimeError.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError, RuntimeError)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__
