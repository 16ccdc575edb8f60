"""The evaluations of the suite: each takes a subject and a file and returns what it found, how sure it is and over how many items."""

from typing import NamedTuple

import numpy as np

from lm.data.sources import open_source
from lm.errors import DataError
from lm.evaluate.continuations import Request, overlap, rolling
from lm.evaluate.suite import items
from lm.evaluate.suite.statistics import mean, named, perplexity, ratio
from lm.evaluate.suite.subject import Subject


class Documents(NamedTuple):
    """Nats [n] of the texts of n documents and of their ends, tokens [n] with the end, the texts, and what was counted."""

    nats: np.ndarray
    ends: np.ndarray
    tokens: np.ndarray
    texts: list[str]
    counts: dict


def documents(subject: Subject, file: str) -> Documents:
    """Scores the documents of a file or source, each on its own after bos, as many tokens of it before each token as fit."""
    config, tokenizer = subject.run.config, subject.run.tokenizer
    texts = [document.text for document in open_source(file, config.data).documents()]
    texts = texts[: subject.limit] if subject.limit else texts
    if not texts:
        raise DataError(f"{file} has no documents")
    windows, owners, tokens = [], [], []
    for i, text in enumerate(texts):
        found = with_end(rolling(tokenizer.encode(text), tokenizer.bos_id, subject.context, subject.stride), tokenizer.eos_id, subject)
        windows += found
        owners += [i] * len(found)
        tokens.append(sum(len(window.continuation) for window in found))
    scores = subject.scorer(windows)
    nats = -np.bincount(owners, scores.logprobs, len(texts))
    final = np.flatnonzero(np.diff([*owners, len(texts)]))  # the last window of each
    ends = -scores.last[final]
    counts = {"documents": len(texts), "tokens": sum(tokens), "bytes": sum(len(text.encode()) for text in texts),
              "end_nats": float(ends.sum()), "context": subject.context, "stride": subject.stride or subject.context,
              "windows": len(windows), "overlap_tokens": overlap(windows)}
    if not tokenizer.lossless:
        counts["tokenizer_lossless"] = False
    return Documents(nats - ends, ends, np.array(tokens), texts, counts)


def with_end(windows: list[Request], end: int, subject: Subject) -> list[Request]:
    """Windows that score the end of the document too: in the last one, or in one more where that is full.

    What stands before each token of text is the same with the end and without.
    """
    last = windows[-1] if windows else Request((subject.run.tokenizer.bos_id,), ())
    whole = last.context + last.continuation
    if len(whole) <= subject.context:
        return [*windows[:-1], last._replace(continuation=(*last.continuation, end))]
    return [*windows, Request(whole[-subject.context :], (end,))]


def token_perplexity(subject: Subject, file: str) -> dict:
    """Perplexity by token and by byte. The end of each document is a token that is scored, as in `lm.evaluate.likelihood`.

    Standard errors are over documents.
    """
    found = documents(subject, file)
    nats, sizes = found.nats + found.ends, [len(text.encode()) for text in found.texts]
    by_byte = ratio(nats, sizes)
    bits = tuple(value if value is None else value / np.log(2) for value in by_byte)
    return named(perplexity=perplexity(ratio(nats, found.tokens)), byte_perplexity=perplexity(by_byte), bits_per_byte=bits) | found.counts


def word_perplexity(subject: Subject, file: str) -> dict:
    """Perplexity by words between white space, as papers report it: exp(nats of all the text / words).

    word_perplexity is that of the text alone, as the harness has it. word_perplexity_with_ends counts the end of each line, newlines
    and the ends of documents, as a word too, as papers on the Penn Treebank and WikiText do. Standard errors are over documents.
    """
    found = documents(subject, file)
    words = np.array([len(text.split()) for text in found.texts])
    ends = np.array([text.count("\n") + (not text.endswith("\n")) for text in found.texts])
    return named(word_perplexity=perplexity(ratio(found.nats, words)),
                 word_perplexity_with_ends=perplexity(ratio(found.nats + found.ends, words + ends))) | {
        "words": int(words.sum()), "line_ends": int(ends.sum())} | found.counts


def minimal_pairs(subject: Subject, file: str) -> dict:
    """How often the good sentence of a pair is the more probable; a tie is not.

    `by_uid` has the accuracy, its standard error and the number of items of each UID in the file.
    """
    found = items.pairs(file, subject.limit)
    logprobs, counts = subject.sentences([sentence for good, bad, _ in found for sentence in (good, bad)])
    good, bad = logprobs.reshape(-1, 2).T
    better, uids = good > bad, np.array([uid for _, _, uid in found])
    groups = {str(uid): named(accuracy=mean(better[uids == uid])) | {"items": int(np.sum(uids == uid))} for uid in sorted({*uids})}
    score = "pseudo_log_likelihood" if subject.masked else "log_likelihood"
    result = named(accuracy=mean(better)) | {"items": len(found), "ties": int(np.sum(good == bad)), "score": score}
    return result | ({"by_uid": groups} if any(uids) else {}) | counts


def choice(subject: Subject, file: str) -> dict:
    """How often the right answer is the most probable one: as it is, by character and by byte (of the answer without its space).

    These are the harness's acc, acc_norm and acc_bytes; of equal answers the first counts.
    """
    found = items.choices(file, subject.limit)
    scores = subject.scorer([subject.request(item.context, f" {answer}") for item in found for answer in item.answers])
    right = {"accuracy": [], "accuracy_by_character": [], "accuracy_by_byte": []}
    first = 0
    for item in found:
        logprobs = scores.logprobs[first : first + len(item.answers)]
        first += len(item.answers)
        sizes = (1, [len(answer) for answer in item.answers], [len(answer.encode()) for answer in item.answers])
        for values, size in zip(right.values(), sizes, strict=True):
            values.append(int(np.argmax(logprobs / size)) == item.gold)
    chance = float(np.mean([1 / len(item.answers) for item in found]))
    return named(**{name: mean(values) for name, values in right.items()}) | {"items": len(found), "chance": chance} | scores.counts


def last_word(subject: Subject, file: str) -> dict:
    """How often each token of the last word is the likeliest one, and the perplexity of that word."""
    found = items.last_words(file, subject.limit)
    scores = subject.scorer([subject.request(before, word) for before, word in found])
    return named(accuracy=mean(scores.greedy), perplexity=perplexity(mean(-scores.logprobs))) | {"items": len(found)} | scores.counts
