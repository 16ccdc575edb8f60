"""Decoding: prompts in, completions with log-probabilities out; one compiled loop for every kind of model."""

from lm.generate.generator import Completion, Generator
from lm.generate.sampling import Sampling

__all__ = ["Completion", "Generator", "Sampling"]
