"""The doors: parse, call one library function, print, return."""

from consilience.cli.app import main

__all__ = ["main"]
