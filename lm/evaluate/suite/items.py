"""Items of evaluations from files of JSON lines; what is wrong with one is said with its file, line and field."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from lm.data import lines
from lm.errors import DataError


class Choice(NamedTuple):
    """A question (the text before the answer) with its answers, of which `gold` is the right one."""

    context: str
    answers: tuple[str, ...]
    gold: int


def records(path: str, limit: int = 0) -> Iterator[tuple[str, dict]]:
    """("FILE:LINE", object) of the first `limit` lines that are not blank; 0: of all. DataError when there are none."""
    if not os.path.isfile(path):
        raise DataError(f"{path} is not a file")
    count = 0
    for line in lines.lines(path, 0, -1, 1):
        text = lines.decode(line.value, path, line.offset)
        if not text.strip():
            continue
        where = f"{path}:{line.number}"
        record = lines.parse_json(text, where)
        if not isinstance(record, dict):
            raise DataError(f"{where}: not a JSON object")
        yield where, record
        count += 1
        if count == limit:
            return
    if not count:
        raise DataError(f"{path} has no items")


def text(record: dict, where: str, *fields: str) -> str:
    """The text in the first of some fields that is there. DataError when there is none, or it is no text."""
    for field in fields:
        if field in record:
            if not isinstance(record[field], str) or not record[field].strip():
                raise DataError(f"{where}: field {field!r} is not a text")
            return record[field]
    raise DataError(f"{where}: no field {' or '.join(map(repr, fields))}; there are {', '.join(map(repr, record)) or 'none'}")


def pairs(path: str, limit: int = 0) -> list[tuple[str, str, str]]:
    """(sentence_good, sentence_bad, UID or "") of minimal pairs, as BLiMP has them (Warstadt et al. 2020)."""
    return [(text(record, where, "sentence_good"), text(record, where, "sentence_bad"), str(record.get("UID", "")))
            for where, record in records(path, limit)]


def last_words(path: str, limit: int = 0) -> list[tuple[str, str]]:
    """(text before the last space, the last word with that space) of field `text`, as LAMBADA has them (Paperno et al. 2016)."""
    found = []
    for where, record in records(path, limit):
        whole = text(record, where, "text")
        before, space, word = whole.rpartition(" ")
        if not before.strip() or not word.strip():
            raise DataError(f"{where}: field 'text' needs at least two words and no space at its end")
        found.append((before, space + word))
    return found


def choices(path: str, limit: int = 0) -> list[Choice]:
    """Multiple choice, in the format of ARC (question; choices: {text, label}; answerKey) or of HellaSwag (ctx; endings; label).

    `question` is asked as "Question: ...\\nAnswer:", `ctx` is continued as it stands. `choices` may be a list of texts, and `gold` is
    another name of `label`. An answer is named by its label, or else by its number from 0.
    """
    found = []
    for where, record in records(path, limit):
        asked = text(record, where, "question", "ctx")
        context = f"Question: {asked}\nAnswer:" if "question" in record else asked
        field = next((name for name in ("choices", "endings") if name in record), None)
        if field is None:
            raise DataError(f"{where}: no field 'choices' or 'endings'")
        answers, labels = _answers(record[field], f"{where}: field {field!r}")
        found.append(Choice(context, answers, _gold(record, where, labels)))
    return found


def _answers(value, what: str) -> tuple[tuple[str, ...], list[str]]:
    """(texts, labels) of a list of texts, or of ARC's {"text": [...], "label": [...]}."""
    texts, labels = (value.get("text"), value.get("label")) if isinstance(value, dict) else (value, None)
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(each, str) and each.strip() for each in texts):
        raise DataError(f"{what} is not a list of at least two texts")
    labels = [str(i) for i in range(len(texts))] if labels is None else labels
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise DataError(f"{what} does not have a label for each text")
    return tuple(texts), [str(label) for label in labels]


def _gold(record: dict, where: str, labels: list[str]) -> int:
    field = next((name for name in ("answerKey", "label", "gold") if name in record), None)
    if field is None:
        raise DataError(f"{where}: no field 'answerKey', 'label' or 'gold'")
    value = str(record[field])
    if value not in labels:
        raise DataError(f"{where}: field {field!r} is {record[field]!r}, and the answers are {', '.join(labels)}")
    return labels.index(value)
