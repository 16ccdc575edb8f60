"""The offline suite: the field's usual evaluations on files of your own, nothing downloaded.

    perplexity:FILE  word_perplexity:FILE  minimal_pairs:FILE.jsonl  choice:FILE.jsonl  last_word:FILE.jsonl
"""

from collections.abc import Callable
from typing import NamedTuple

from lm.errors import ConfigError
from lm.evaluate.suite import measures
from lm.evaluate.suite.subject import Subject, open_subject

__all__ = ["HARNESS", "SUITES", "Entry", "Subject", "Suite", "measure", "open_subject", "parse"]

HARNESS = "lm_eval"  # tasks of the lm-evaluation-harness, which lm.interop.lm_eval runs


class Suite(NamedTuple):
    """What measures a subject on a file, and whether it can ask a masked model."""

    measure: Callable[[Subject, str], dict]
    masked: bool = False


SUITES = {
    "perplexity": Suite(measures.token_perplexity),
    "word_perplexity": Suite(measures.word_perplexity),
    "minimal_pairs": Suite(measures.minimal_pairs, masked=True),
    "choice": Suite(measures.choice),
    "last_word": Suite(measures.last_word),
}


class Entry(NamedTuple):
    """One evaluation: the name of a suite, and its file or task."""

    suite: str
    argument: str

    def __str__(self):
        return f"{self.suite}:{self.argument}"


def parse(spec: str) -> list[Entry]:
    """The evaluations in "NAME:ARGUMENT,...": of lm_eval:TASK,TASK what has no name of its own is a task too. ConfigError."""
    entries: list[Entry] = []
    for part in spec.split(","):
        name, colon, argument = part.strip().partition(":")
        if colon and name in (*SUITES, HARNESS):
            entries.append(Entry(name, argument))
        elif entries and entries[-1].suite == HARNESS:
            entries.append(Entry(HARNESS, part.strip()))
        else:
            raise ConfigError(f"--suite={spec}: {part!r} is not known: write {', '.join(f'{name}:FILE' for name in SUITES)} or "
                              f"{HARNESS}:TASK")
        if not entries[-1].argument:
            raise ConfigError(f"--suite={spec}: {part!r} names no {'task' if entries[-1].suite == HARNESS else 'file'}")
    return list(dict.fromkeys(entries))


def measure(subject: Subject, entries: list[Entry]) -> dict[str, dict]:
    """{"NAME:FILE": what was found} of entries of this suite. ConfigError for what a masked model cannot be asked."""
    for entry in entries:
        if subject.masked and not SUITES[entry.suite].masked:
            answered = ", ".join(name for name, suite in SUITES.items() if suite.masked)
            raise ConfigError(f"{subject.run.workdir} has objective.name={subject.run.config.objective.name}, which gives no likelihood: "
                              f"{entry.suite} cannot be asked of it, only {answered}")
    return {str(entry): SUITES[entry.suite].measure(subject, entry.argument) for entry in entries}
