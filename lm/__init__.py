"""lm: pretraining language models with JAX and Flax. Importing it sets no global flag."""

__version__ = "0.1.0"
