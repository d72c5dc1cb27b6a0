"""Consilience: several open chat models in, one better model out, and an honest account of how much better."""

__version__ = "0.1.0"
