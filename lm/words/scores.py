"""What word vectors know: nearest words, similarity as people see it (Finkelstein et al. 2002), analogies (Mikolov et al. 2013a)."""

import numpy as np

from lm.errors import DataError
from lm.words.files import rows_of
from lm.words.vectors import Vectors

BLOCK = 1024  # questions that are answered in one product


def nearest(vectors: Vectors, word: str, count: int = 10) -> list[tuple[str, float]]:
    """The words of the largest cosine with a word, itself left out: (word, cosine), falling. DataError for a word without a vector."""
    if word not in vectors.index:
        raise DataError(f"{word!r} has no vector: words are in lower case, and rare ones have none")
    cosines = vectors.unit @ vectors.unit[vectors.index[word]]
    cosines[vectors.index[word]] = -np.inf
    best = np.argsort(-cosines, kind="stable")[: min(count, len(vectors.words) - 1)]
    return [(vectors.words[i], float(cosines[i])) for i in best]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [n] from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two lists [n] (Spearman 1904): Pearson's of their ranks; nan where one is constant."""
    a, b = (ranks(np.asarray(values, np.float64)) for values in (a, b))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float("nan")


def similarity(vectors: Vectors, path) -> dict:
    """Spearman's rho of cosines with human scores in a file of lines `word word score` (tab, comma or space between them).

    Words are taken in lower case; pairs without both vectors are left out and counted: {rho, pairs, found}; rho is null where either
    side is constant. A first line without a number names the columns. Raises DataError for a line of another form, and for fewer than
    two pairs with vectors.
    """
    cosines, human, pairs = [], [], 0
    for place, (number, fields) in enumerate(rows_of(path)):
        try:
            first, second, score = fields
            score = float(score)
        except ValueError as error:
            if place == 0:
                continue
            raise DataError(f"{path}, line {number}: two words and a number are meant") from error
        pairs += 1
        found = [vectors.index.get(word.lower()) for word in (first, second)]
        if None not in found:
            cosines.append(float(vectors.unit[found[0]] @ vectors.unit[found[1]]))
            human.append(score)
    if len(cosines) < 2:
        raise DataError(f"{path}: only {len(cosines)} of {pairs} pairs have vectors: train on more text, or with a larger data.vocab_size")
    rho = spearman(cosines, human)
    return {"rho": None if np.isnan(rho) else rho, "pairs": pairs, "found": len(cosines)}


def analogies(vectors: Vectors, path, restrict: int = 300_000) -> dict:
    """Accuracy of b - a + c (3CosAdd) on a file of lines `a b c d` in sections `: name`: is the nearest word d, but for a, b and c?

    Words are taken in lower case. Answers are sought among the first `restrict` words, and questions with a word outside them are left
    out and counted: {accuracy, questions, answered, sections: {name: {accuracy, questions, answered}}}; accuracy is null where no
    question could be asked. Raises DataError for a line of another form.
    """
    sections = _sections(path)
    total = {"correct": 0, "questions": 0, "answered": 0}
    results = {}
    for name, questions in sections.items():
        numbers = [[vectors.index.get(word.lower(), restrict) for word in question] for question in questions]
        asked = np.array([row for row in numbers if max(row) < restrict], np.int64).reshape(-1, 4)
        blocks = [asked[start : start + BLOCK] for start in range(0, len(asked), BLOCK)]
        correct = sum(int((_answers(vectors, block, restrict) == block[:, 3]).sum()) for block in blocks)
        result = {"correct": correct, "questions": len(questions), "answered": len(asked)}
        total = {key: total[key] + result[key] for key in total}
        results[name] = _with_accuracy(result)
    return _with_accuracy(total) | {"sections": results}


def _sections(path) -> dict[str, list[list[str]]]:
    sections: dict[str, list[list[str]]] = {}
    name = "all"
    for number, fields in rows_of(path):
        if fields[0].startswith(":"):
            name = " ".join(fields).lstrip(": ")
        elif len(fields) != 4:
            raise DataError(f"{path}, line {number}: four words, or a colon and the name of a section, are meant")
        else:
            sections.setdefault(name, []).append(fields)
    if not sections:
        raise DataError(f"{path} holds no questions")
    return sections


def _answers(vectors, questions, restrict) -> np.ndarray:
    """The nearest word [n] to b - a + c of questions [n, 4]; a, b and c themselves are no answers."""
    unit = vectors.unit[:restrict]
    a, b, c, _ = questions.T
    cosines = (unit[b] - unit[a] + unit[c]) @ unit.T
    cosines[np.arange(len(questions))[:, None], questions[:, :3]] = -np.inf
    return np.argmax(cosines, axis=1)


def _with_accuracy(result) -> dict:
    accuracy = result["correct"] / result["answered"] if result["answered"] else None
    return {"accuracy": accuracy, "questions": result["questions"], "answered": result["answered"]}
