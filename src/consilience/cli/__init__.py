"""The doors: parse, call one library function, print, return."""

import atexit
import gc
import os

# Nothing of what is imported is garbage, and at the end everything is given back at once: looking for garbage takes a
# fifth of what a command needs to start and to stop. And pydantic would look for plugins among all installed packages.
gc.disable()
atexit.register(gc.freeze)
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from consilience.cli.app import main  # noqa: E402

gc.enable()

__all__ = ["main"]
