"""Markdown: tables, a marked place of a file, and a report as a page."""

import pathlib

from lm.errors import ConfigError, DataError, writing


def line(row) -> str:
    """A row of a table; what would end a cell is escaped."""
    return f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in row)} |"


def table(rows: list[dict]) -> str:
    """Rows {heading: text} as a table with the headings of the first. ValueError where a row has others."""
    return "\n".join([line(rows[0]), line(["---"] * len(rows[0])), *map(line, cells(rows))])


def cells(rows: list[dict]) -> list[list]:
    """Cells of rows in the order of the first row's headings. ValueError where a row has others."""
    for row in rows:
        if row.keys() != rows[0].keys():
            raise ValueError(f"a row has the columns {', '.join(row)}, and the table {', '.join(rows[0])}")
    return [[row[name] for name in rows[0]] for row in rows]


def put(file: str, name: str, text: str):
    """Replaces what stands between `<!-- NAME -->` and `<!-- end of NAME -->` in a file. ConfigError when there is no such file, DataError
    when it has no such place."""
    path = pathlib.Path(file)
    if not path.is_file():
        raise ConfigError(f"--into={file} is no file: --name={name} is a place in one that is there")
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise DataError(f"{file} has no lines {first.strip()} and {last}: put them where the tables belong")
    with writing(path):
        path.write_text(f"{before}{first}\n{text}\n\n{last}{after}", encoding="utf-8")


def page(results: dict) -> str:
    """The report of a sweep without its figures."""
    from lm.compare.report import tables

    parts = [f"# {title(results)}", f"**{results['verdict']}**"]
    parts += ["Still to come: " + "; ".join(results["missing"]) + "."] if results["missing"] else []
    recall = tables.recall(results)
    sections = (
        ("Asked", _facts(tables.asked(results))), ("Scores", table(tables.scores(results))),
        ("Costs", f"{table(tables.costs(results))}\n\n{tables.shared(results)}".strip()),
        ("Sizes and rates", table(tables.choices(results))), ("Each two arms", _table_of(tables.pairs(results))),
        ("Recall and copying", f"{table(recall)}\n\n{tables.OF_RECALL}" if recall else ""),
        ("Suites", _table_of(tables.suites(results))), ("Samples", _samples(tables.samples(results))),
        ("Configs", _table_of(tables.settings(results))), ("Runs", _table_of(tables.runs(results))),
        ("Failed", _table_of(tables.failures(results))), ("Where the numbers are from", _facts(tables.provenance(results))),
        ("Again", f"```\n{tables.command(results['ask'])}\n```"))
    parts += [f"## {name}\n\n{text}" for name, text in sections if text]
    return "\n\n".join(parts) + "\n"


def title(results: dict) -> str:
    """What is compared at what."""
    from lm.compare.verdict import budget_text, few, listed

    names = listed(few([arm["name"] for arm in results["arms"] if not arm["reference"]]))
    budget = budget_text(results)
    return f"{names} at {budget}" if results["ask"]["budget"] else f"{names}, {budget}"


def _samples(prompts: list[dict]) -> str:
    """What each arm makes of each prompt, as quotes."""
    parts = []
    for prompt in prompts:
        parts.append(f"*{' '.join(prompt['prompt'].split())}* ..., {prompt['how'] or 'continued'}:")
        parts += [f"{said['arm']}:\n\n" + "\n".join(f"> {piece}" for piece in said["text"].splitlines()) for said in prompt["texts"]]
    return "\n\n".join(parts)


def _table_of(rows) -> str:
    return table(rows) if rows else ""


def _facts(facts) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in facts)
