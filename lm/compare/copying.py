"""Copying: what a run of text costs a model, and what the same run costs when it comes again at once.

Repeated sequences are how Olsson et al. 2022 ("In-context Learning and Induction Heads") find heads that copy; theirs are of random tokens,
these of the text that is scored. A model that remembers a row pays little for the second half, one without memory as much as for the first.
"""

import dataclasses

import numpy as np

from lm.data.store import TokenStore
from lm.evaluate import evaluate_stores
from lm.run import Run

ROWS = 64
_SEED = 0


def copy_probe(run: Run, stores: list[TokenStore]) -> dict | None:
    """{"rows", "tokens", "first", "second", "difference"}: nats per token of each half of rows of data.context tokens that say a run of the
    stores' text twice, and the first less the second: what is saved by copying.

    Of a half its first token is left out, which nothing before it foretells; "tokens" are those that are counted of a half, over all rows.
    Nats are by the tokens of a run's own tokenizer: of arms whose tokenizers differ the differences are to be read, not the halves. None
    where evaluation gives rows no likelihood, and where rows or the longest of the stores are too short to say two tokens twice.
    """
    if run.objective.measure != "likelihood":
        return None
    context = run.config.data.context
    runs = text_runs(stores, context // 2)
    half = runs.shape[1]
    if half < 2:
        return None
    sums, counts = np.zeros(2), np.zeros(2, np.int64)

    def tell(store, rows, nats):
        turn, place = np.divmod(rows.positions, half)
        counted = rows.scored & (place > 0) & (turn < 2)
        sums[:] += np.bincount(turn[counted], nats[counted].astype(np.float64), minlength=2)
        counts[:] += np.bincount(turn[counted], minlength=2)

    config = run.config.copy_and_resolve_references()
    config.eval.context = context
    # A row is a document of one window, which every model has read from its start. Where two runs do not fill it, since its length is odd
    # or the text too short, it goes on with what is not counted.
    evaluate_stores(dataclasses.replace(run, config=config), [_store_of(runs[:, np.arange(context) % half])], stride=context, tell=tell)
    first, second = (sums / counts).tolist()
    return {"rows": len(runs), "tokens": int(counts[0]), "first": first, "second": second, "difference": first - second}


def text_runs(stores: list[TokenStore], length: int) -> np.ndarray:
    """Int32 [ROWS, `length`]: runs of tokens of the stores' text, the ends of its documents left out, since no model reads what follows
    one; they depend on the text, the length and a fixed seed alone. Shorter where no store has so much text.

    Every place where a run can begin is as likely as any other.
    """
    texts = [store.offsets - np.arange(store.num_documents + 1) for store in stores]  # where documents begin without the ends before them
    length = min(length, max(int(text[-1]) for text in texts))
    begins = np.array([max(0, int(text[-1]) - length + 1) for text in texts])
    drawn = np.random.default_rng(_SEED).integers(begins.sum(), size=ROWS)
    found = np.empty((ROWS, length), np.int32)
    for row, place in zip(found, drawn, strict=True):
        number = int(np.searchsorted(begins.cumsum(), place, side="right"))
        places = place - begins[:number].sum() + np.arange(length)
        places += np.searchsorted(texts[number], places, side="right") - 1  # an end for each document before
        row[:] = stores[number].read(int(places[0]), int(places[-1]) + 1)[places - places[0]] if length else 0
    return found


def _store_of(rows: np.ndarray) -> TokenStore:
    """A store in memory whose documents are the rows [R, T]; bytes of text they have none that would mean something."""
    flat = rows.ravel()
    return TokenStore(lambda starts, stops: [flat[start:stop] for start, stop in zip(starts, stops, strict=True)],
                      np.arange(len(rows) + 1) * rows.shape[1], np.ones(len(rows), np.int64), lambda: [str(i) for i in range(len(rows))])
