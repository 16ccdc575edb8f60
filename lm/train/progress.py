"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere; always on standard error."""

import sys

from tqdm import tqdm


class Progress:
    """Shows train and eval lines as they are written; with `active` False, nothing."""

    def __init__(self, first: int, last: int, active: bool = True):
        terminal = active and sys.stderr.isatty()
        self._bar = tqdm(initial=first, total=last, unit="step", file=sys.stderr, dynamic_ncols=True) if terminal else None
        self._last, self._active = last, active

    def advance(self):
        """One step more."""
        if self._bar is not None:
            self._bar.update()

    def train(self, line: dict):
        """A train line of metrics.jsonl."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {_number(line['loss'])}, {line['tokens_per_second']:,.0f} tokens/s, MFU {line['mfu']:.0%}")
            return
        self.say(f"step {line['step']}/{self._last}  loss {_number(line['loss'])}  lr {line['learning_rate']:.2e}  "
                 f"grad {_number(line['grad_norm'])}  {line['tokens_per_second']:,.0f} tokens/s  MFU {line['mfu']:.0%}")

    def say(self, text: str):
        """One line of text."""
        if not self._active:
            return
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def close(self):
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _number(value):
    return "not finite" if value is None else f"{value:.4f}"
