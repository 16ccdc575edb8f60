"""A mixture of denoisers (UL2, Tay et al. 2022): each example is corrupted in one of several ways, and a token in front says of which kind.

R (regular) cuts out short spans as T5 does, X (extreme) long ones or many, S (sequential) the end of the row, as a prefix language
model does. The default is the seven of the paper's table, all as frequent. As in T5 a row ends with noise, and one so short that it
gets a single span loses its end.
"""

import numpy as np

from lm.errors import ConfigError
from lm.objectives.span import Denoiser, Span

MODES = ("R", "S", "X")
# Mean length of spans and their share of the row; S has no mean: its suffix is 25 % on average.
TABLE = (
    Denoiser(0.15, 3.0, mode=0), Denoiser(0.15, 8.0, mode=0),
    Denoiser(0.25, 0.0, mode=1),
    Denoiser(0.5, 3.0, mode=2), Denoiser(0.5, 8.0, mode=2), Denoiser(0.15, 64.0, mode=2), Denoiser(0.5, 64.0, mode=2),
)


class Denoisers(Span):
    """UL2's objective. The ids of its own are the sentinels, and then the mode tokens of R, S and X.

    objective.denoiser_rates are the shares of the rows of `TABLE`, in its order. Batches have one shape, which the longest inputs and
    targets need; inputs begin with the mode token, in the form decoder after bos.
    """

    modes = len(MODES)

    def _denoisers(self) -> list[Denoiser]:
        rates = tuple(self.options.denoiser_rates) or (1.0,) * len(TABLE)
        if len(rates) != len(TABLE) or min(rates) < 0 or not sum(rates):
            raise ConfigError(f"objective.denoiser_rates={rates} must be {len(TABLE)} shares, none negative and not all 0, or empty")
        # What is never drawn needs no room.
        return [denoiser._replace(rate=rate) for denoiser, rate in zip(TABLE, rates, strict=True) if rate]

    def prompt(self, mode: str, tokens: np.ndarray) -> np.ndarray:
        """tokens [n] behind the mode token of "R", "S" or "X", as a model so trained expects its inputs (Tay et al. 2022, section 3.2)."""
        return np.append(self.mode + MODES.index(mode), tokens).astype(np.int32)
