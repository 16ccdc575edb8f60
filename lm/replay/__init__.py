"""Spike forensics: a step of a run made again, with its documents, its tensors (`watch`) and what is wrong with it (`suspects`)."""

from lm.replay.command import replay

__all__ = ["replay"]
