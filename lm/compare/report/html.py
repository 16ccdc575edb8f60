"""The report as one HTML file that needs nothing else."""

import jinja2

from lm.compare.plots import COLOURS
from lm.compare.report import tables
from lm.compare.report.figures import figures
from lm.compare.report.markdown import cells, title
from lm.compare.report.template import TEMPLATE


def page(results: dict) -> str:
    """The page of a sweep's results (`lm.compare.results.gather`), finished or not."""
    marks = {arm["name"]: number % len(COLOURS) for number, arm in enumerate(results["arms"])}
    verdict, _, ground = results["verdict"].partition(". At ")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE).render(
        title=title(results), verdict=f"{verdict.rstrip('.')}.", ground=f"At {ground}" if ground else "", missing=results["missing"],
        asked=tables.asked(results), scores=_table(tables.scores(results), marks), costs=_table(tables.costs(results), marks),
        shared=tables.shared(results), recall=_table(tables.recall(results), marks), of_recall=tables.OF_RECALL,
        choices=_table(tables.choices(results), marks), differences=[row["text"] for row in results["differences"]],
        pairs=_table(tables.pairs(results)), suites=_table(tables.suites(results)),
        prompts=tables.samples(results), marks=marks, settings=_table(tables.settings(results)), runs=_table(tables.runs(results), marks),
        failures=_table(tables.failures(results)), provenance=tables.provenance(results), command=tables.command(results["ask"]),
        figures={name: [figure | {"svg": _as_it_is(figure["svg"])} for figure in drawn] for name, drawn in figures(results).items()})


def _as_it_is(svg: str):
    """Markup that is ours: names in it were escaped when it was drawn."""
    import markupsafe

    return markupsafe.Markup(svg)


def _table(rows: list[dict], marks: dict[str, int] | None = None) -> dict | None:
    """Columns, whether each is of numbers, and cells with the mark of the arm that they begin with; None without rows."""
    if not rows:
        return None
    columns = [(name, name in tables.NUMBERS or name.startswith("less ")) for name in rows[0]]
    marked = [(marks or {}).get(row.get("arm")) for row in rows]
    return {"columns": columns, "rows": list(zip(marked, cells(rows), strict=True))}
