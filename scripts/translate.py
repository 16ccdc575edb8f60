"""Translates with a run on pairs, by beam search: given texts, the lines of a file, or a split of its data, for which it gives BLEU.

    python scripts/translate.py --workdir=runs/translation --text="Open the file." --text="Save it."
    python scripts/translate.py --workdir=runs/translation --input=FILE.txt
    python scripts/translate.py --workdir=runs/translation --split=validation --limit=500 --tokenize=zh

The last line of standard output is a JSON object: {"translations": [{"text", "score"}]}, or for a split BLEU (by sacreBLEU), the share of
translations that are exactly their reference, the number of pairs and how it was measured, which is kept in
WORKDIR/scores/translation.json too.
"""

import pathlib

from lm import cli
from lm.errors import ConfigError, DataError

SHOWN = 5  # pairs of a split


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="work directory of a run on pairs")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--text", action="append", help="a source; may be given several times")
    parser.add_argument("--input", metavar="FILE", help="sources, one a line")
    parser.add_argument("--split", choices=("train", "validation", "test"), help="translate a split of the run's data and give BLEU")
    parser.add_argument("--limit", type=int, default=0, help="pairs of the split, from its start (default: all)")
    parser.add_argument("--beams", type=int, default=4, help="1 is greedy")
    parser.add_argument("--alpha", type=float, default=0.6, help="exponent of the length penalty (Wu et al. 2016)")
    parser.add_argument("--tokenize", default="13a", help="sacreBLEU's tokenizer: 13a, zh for Chinese, ...")
    parser.add_argument("--attention", action="store_true", help="also say what of its source each token of a translation reads")
    arguments = parser.parse_args(argv)
    if arguments.attention and arguments.split:
        raise ConfigError("--attention is for --text and --input, not for a split")
    if sum(given is not None for given in (arguments.text, arguments.input, arguments.split)) != 1:
        raise ConfigError("give one of --text, --input and --split")
    if not all(text.strip() for text in arguments.text or ()):
        raise ConfigError("--text has nothing to translate: give it a text")
    cli.keep_compilations()
    from lm.generate import scoring

    if arguments.split:
        result, shown = scoring.score(arguments.workdir, arguments.split, arguments.limit, arguments.beams, arguments.alpha,
                                      arguments.tokenize, arguments.step)
        for source, text, reference in shown[:SHOWN]:
            print(f"source       {source}\ntranslation  {text}\nreference    {reference}\n")
        cli.print_result(result)
        return
    texts = arguments.text or _lines(arguments.input)
    run, translator, _ = scoring.translator_of(arguments.workdir, arguments.step)
    translations = translator(texts, arguments.beams, arguments.alpha)
    print("\n".join(found.text for found in translations))
    result = {"translations": [found._asdict() for found in translations]}
    if arguments.attention:
        pairs = zip(texts, translations, strict=True)
        result["attention"] = [scoring.attention(run, translator, text, found.text) for text, found in pairs]
    cli.print_result(result)


def _lines(name: str) -> list[str]:
    path = pathlib.Path(name)
    if not path.is_file():
        raise ConfigError(f"there is no file {name}: give --input the path of a text, one source a line")
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if blank:
        raise DataError(f"{name} has nothing to translate in line {blank[0]}: give one source a line")
    return lines


if __name__ == "__main__":
    cli.run(main)
