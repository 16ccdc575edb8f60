"""Writes an n-gram run as an ARPA file, which KenLM, SRILM and others read, or makes a run of an ARPA file.

    python scripts/arpa.py --workdir=runs/ngram --export=model.arpa.gz
    python scripts/arpa.py --workdir=runs/read --import=model.arpa --config=configs/lineage/ngram.py:3

Words of the file are pieces of the tokenizer, with white space escaped. The last line of standard output is a JSON object with file, order
and the number of n-grams by order.
"""

from lm import cli
from lm.errors import ConfigError


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    parser.add_argument("--export", metavar="FILE", help="file to write; .gz compresses")
    parser.add_argument("--import", metavar="FILE", dest="imported", help="file to read; needs --config")
    parser.add_argument("--step", type=int, help="checkpoint to export (default: the latest)")
    parser.add_config(required=False)
    arguments, overrides = parser.parse_with_overrides(argv)
    if (arguments.export is None) == (arguments.imported is None):
        raise ConfigError("give one of --export and --import")
    if (arguments.imported is None) != (arguments.config is None):
        raise ConfigError("--config goes with --import: it says which tokenizer the words of the file belong to")
    cli.keep_compilations()
    from lm.train import counted

    if arguments.export:
        cli.print_result(counted.export_arpa(arguments.workdir, arguments.export, arguments.step))
    else:
        cli.print_result(counted.import_arpa(cli.load_config(arguments, overrides), arguments.workdir, arguments.imported))


if __name__ == "__main__":
    cli.run(main)
