"""Makes RESULTS.md from the work directories of sweeps (scripts/compare.py) and of runs (scripts/train.py): nothing in it is typed by hand.

    python scripts/report.py runs/gated --store=docs/results/20-gated.json --title='LSTM or GRU' --question='Which gate, at equal FLOPs?'
    python scripts/report.py --from docs/results/*.json --into=RESULTS.md
    python scripts/report.py runs/gated runs/lineage/gru --into=README.md --name=gated
    python scripts/report.py --from docs/results/*.json --into=README.md --name=results --verdicts

What --store keeps, a few kB with the score of every run, belongs into git; from such files --from makes the page again, to the byte.
With --name, the place between <!-- NAME --> and <!-- end of NAME --> of a file is replaced instead of the whole. Several sweeps make one
section, with a table over their budgets. The last line of standard output is a JSON object: the sections with their verdicts.
"""

import pathlib

from lm import cli
from lm.errors import ConfigError, writing


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("workdirs", nargs="*", metavar="WORKDIR", help="work directories of sweeps or runs, which make one section")
    add("--from", dest="files", nargs="+", default=[], metavar="FILE", help="what --store kept, a section each")
    add("--store", metavar="FILE", help="keep what the section needs")
    add("--title", default="", help="of the section (default: what is compared at what)")
    add("--question", default="", help="what the section answers, above its tables")
    add("--note", default="", help="what is to be said of it, below")
    add("--show", default="", metavar="position,frequency,recall,copy,tuned",
        help="breakdowns of the loss that are shown too, and how rates were tuned")
    add("--into", metavar="FILE", help="Markdown file to write, or with --name, to change")
    add("--name", default="", help="of the place in that file")
    add("--verdicts", action="store_true", help="with --name: a line for each section instead of the whole of it")
    arguments = parser.parse_args(argv)
    check(arguments)
    from lm.compare import published
    from lm.compare.report import markdown
    from lm.data.files import write_json

    if arguments.files:
        kept = [published.read(file) for file in arguments.files]
    else:
        show = tuple(filter(None, arguments.show.split(",")))
        kept = [published.keep(arguments.workdirs, arguments.title, arguments.question, arguments.note, show)]
    if arguments.store:
        write_json(arguments.store, kept[0])
    if arguments.verdicts:
        text = published.verdicts(kept)
    else:
        text = published.page(kept) if not arguments.name else "\n\n".join(map(published.section, kept))
    if arguments.name:
        markdown.put(arguments.into, arguments.name, text)
    elif arguments.into:
        with writing(arguments.into):
            pathlib.Path(arguments.into).write_text(text, encoding="utf-8")
    else:
        print(text)
    cli.print_result({"sections": [published.outcome(one) for one in kept], "into": arguments.into})


def check(arguments):
    """ConfigError for flags that do not go together."""
    if bool(arguments.workdirs) == bool(arguments.files):
        raise ConfigError("give work directories, or --from with files that --store has kept")
    if arguments.files:
        for flag in ("store", "title", "question", "note", "show"):
            if getattr(arguments, flag):
                raise ConfigError(f"--{flag} is for work directories: what --from reads has kept its own")
    if arguments.name and not arguments.into:
        raise ConfigError(f"--name={arguments.name} is a place in a file: give --into=FILE too")
    if arguments.verdicts and not arguments.name:
        raise ConfigError("--verdicts are lines for a place in a file: give --into=FILE and --name too")
    if len(set(arguments.workdirs)) < len(arguments.workdirs):
        raise ConfigError("a work directory is named twice: name each once")


if __name__ == "__main__":
    cli.run(main)
