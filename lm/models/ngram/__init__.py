"""N-gram language models: counted, smoothed, in back-off form; orders 1 to 7.

Katz (1987); Kneser and Ney (1995); Chen and Goodman (1998), An Empirical Study of Smoothing Techniques for Language Modeling;
Heafield et al. (2013), Scalable Modified Kneser-Ney Language Model Estimation.
"""

from lm.models.ngram.arpa import pieces_of, read_arpa, write_arpa
from lm.models.ngram.family import NGramModel, build
from lm.models.ngram.model import NGram, fit

__all__ = ["NGram", "NGramModel", "build", "fit", "pieces_of", "read_arpa", "write_arpa"]
