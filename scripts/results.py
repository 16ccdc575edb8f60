"""Makes Markdown tables of runs from their work directories: costs, and what each kind of objective can honestly report.

    python scripts/results.py runs/lineage/*
    python scripts/results.py runs/lineage/{ngram5,lstm,gru} --into=README.md --name=lineage

With --into the tables take the place of what stands between <!-- NAME --> and <!-- end of NAME --> in that file. The last line of
standard output is a JSON object with the results.
"""

from lm import cli
from lm.errors import ConfigError


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="work directories of runs")
    parser.add_argument("--into", metavar="FILE", help="Markdown file whose tables are to be replaced")
    parser.add_argument("--name", help="of the place in that file, such as lineage")
    arguments = parser.parse_args(argv)
    if len(set(arguments.workdirs)) < len(arguments.workdirs):
        raise ConfigError("a work directory is named twice: name each once")
    if bool(arguments.into) != bool(arguments.name):
        raise ConfigError("--into=FILE and --name=NAME go together: the place of that file whose tables are to be replaced")
    from lm import results
    from lm.compare.report import markdown

    rows = [results.result_of(workdir) for workdir in arguments.workdirs]
    text = results.tables(rows)
    print(text)
    if arguments.into:
        markdown.put(arguments.into, arguments.name, text)
    cli.print_result({"results": rows})


if __name__ == "__main__":
    cli.run(main)
