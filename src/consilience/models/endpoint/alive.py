"""Who of several processes that share a cache is still alive."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path


class SignOfLife:
    """A locked file beside the cache. The kernel lets go of the lock however its process ends.

    Files of owners that are gone are removed as they are met.
    """

    def __init__(self, cache: Path) -> None:
        self.owner = uuid.uuid4().hex
        self._cache = cache
        cache.parent.mkdir(parents=True, exist_ok=True)
        for left in cache.parent.glob(f"{cache.name}.*.alive"):
            self.lives(left.name.removesuffix(".alive").rpartition(".")[2])
        # Locked before it has its name: nobody may find it unlocked, and take its owner for dead.
        unnamed = self._of(self.owner).with_suffix(".new")
        self._held = unnamed.open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX)
        unnamed.rename(self._of(self.owner))

    def lives(self, owner: str) -> bool:
        """Whether the process that `owner` names is still there."""
        if owner == self.owner:
            return True
        try:
            with self._of(owner).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        self._of(owner).unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Takes the sign away."""
        self._of(self.owner).unlink(missing_ok=True)
        self._held.close()

    def _of(self, owner: str) -> Path:
        return self._cache.with_name(f"{self._cache.name}.{owner}.alive")
