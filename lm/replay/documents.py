"""The documents of a batch: which tokens of which of them lie where."""

import dataclasses

import numpy as np

from lm.train.job import Job

EXCERPT = 60


@dataclasses.dataclass(frozen=True)
class Piece:
    """The part of one document that lies in one row.

    row_tokens, document_tokens and store_tokens are [first, stop) of the same tokens: in the row, in the document, in the store of the
    source's training split.
    """

    row: int
    source: str
    id: str
    row_tokens: tuple[int, int]
    document_tokens: tuple[int, int]
    store_tokens: tuple[int, int]

    @property
    def words(self) -> str:
        """One line for a person."""
        return (f"{self.id}, tokens {self.document_tokens[0]}..{self.document_tokens[1] - 1} "
                f"(source {self.source}, from token {self.store_tokens[0]} of its store)")


def pieces_of(job: Job, index: int) -> list[Piece]:
    """The parts of documents in the batch of an index (counted from 0), by row and place."""
    data = job.data
    examples = np.arange(data.global_batch) + index * data.global_batch
    pieces = []
    for row, (source, place) in enumerate(zip(*data.order.locate(examples), strict=True)):
        store, start = data.stores[source], int(place) * data.context
        stop = min(start + data.context, store.num_tokens)
        first, last = np.searchsorted(store.offsets, [start, stop - 1], side="right") - 1
        for document in range(int(first), int(last) + 1):
            begin, end = int(store.offsets[document]), int(store.offsets[document + 1])
            a, b = max(start, begin), min(stop, end)
            pieces.append(Piece(row, job.prepared.names[source], store.document_id(document),
                                (a - start, b - start), (a - begin, b - begin), (a, b)))
    return pieces


def piece_at(pieces: list[Piece], row: int, place: int) -> Piece | None:
    """The part that holds a place of a row; None for padding."""
    return next((piece for piece in pieces if piece.row == row and piece.row_tokens[0] <= place < piece.row_tokens[1]), None)


def text_of(job: Job, piece: Piece) -> str:
    """The text of a part, as its tokens give it back."""
    store = job.data.stores[job.prepared.names.index(piece.source)]
    return job.prepared.tokenizer.decode(store.read(*piece.store_tokens))


def described(job: Job, pieces: list[Piece], full: bool) -> str:
    """A line for each part, with the start of its text; with `full` all of it below."""
    lines = []
    for piece in pieces:
        text = text_of(job, piece)
        short = text if len(text) <= EXCERPT else text[:EXCERPT] + "..."
        where = f"row {piece.row:>3} [{piece.row_tokens[0]}:{piece.row_tokens[1]}]  {piece.words}"
        lines.append(f"{where}\n{text}" if full else f"{where}  {short!r}")
    return "\n".join(lines)
