"""Word vectors of a run, or of a file of another tool: exports them, and asks what they know.

    python scripts/words.py --workdir=runs/word2vec --export=vectors.bin --nearest=war
    python scripts/words.py --vectors=vectors.bin --similarity=wordsim353.tsv --analogies=questions-words.txt

Files: .vec and .txt are word2vec's text, .bin its binary format, .glove.txt GloVe's text, which has no header. --similarity takes lines
of two words and a score, and gives Spearman's rho; --analogies takes lines of four words in sections `: name`, as questions-words.txt.
The last line of standard output is a JSON object with words, width and what was asked for.
"""

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", help="work directory of a run with model.name=word2vec or glove")
    parser.add_argument("--step", type=int, help="checkpoint to read (default: the latest)")
    parser.add_argument("--vectors", metavar="FILE", help="read this file instead of a run")
    parser.add_argument("--against", choices=("gensim",), help="train gensim's word2vec on the same text, and ask it the same")
    parser.add_argument("--export", metavar="FILE", help="write the vectors, in the format of the file's name")
    parser.add_argument("--similarity", metavar="FILE", help="pairs of words with human scores")
    parser.add_argument("--analogies", metavar="FILE", help="questions of four words")
    parser.add_argument("--nearest", metavar="WORD", help="the words of the largest cosine with this one")
    parser.add_argument("--count", type=int, default=10, help="how many of them")
    arguments = parser.parse_args(argv)
    cli.keep_compilations()
    from lm.words import command

    vectors, source = command.read(arguments.workdir, arguments.vectors, arguments.step)
    result = command.report(vectors, arguments.export, arguments.similarity, arguments.analogies, arguments.nearest, arguments.count)
    if arguments.against:
        result |= command.against_gensim(arguments.workdir, arguments.similarity, arguments.analogies, arguments.nearest, arguments.count)
    if arguments.workdir:
        command.keep(arguments.workdir, source | result)
    cli.print_result(source | result)


if __name__ == "__main__":
    cli.run(main)
