"""Word vectors in use: files of other tools, similarity, analogies, nearest words."""

from lm.words.files import load, save
from lm.words.scores import analogies, nearest, similarity, spearman
from lm.words.vectors import Vectors

__all__ = ["Vectors", "analogies", "load", "nearest", "save", "similarity", "spearman"]
