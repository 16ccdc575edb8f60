"""Evaluates a checkpoint of a run, on its own and on any number of devices; the run may still be training.

    python scripts/eval.py --workdir=runs/quickstart --split=validation
    python scripts/eval.py --workdir=runs/quickstart --data=FILE.txt

The last line of standard output is a JSON object: for models that give text a likelihood nats_per_token, perplexity, bits_per_byte (raw
UTF-8 bytes), tokens, bytes and stderr (of bits_per_byte, over documents); for others what they can honestly report, under names of
its own (masked_accuracy, discriminator_accuracy, ...).
"""

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    parser.add_argument("--step", type=int, help="checkpoint to evaluate (default: the latest)")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="validation", help="split of the run's data")
    parser.add_argument("--data", metavar="FILE", help="evaluate this text instead: a file, or a source as in data.source")
    parser.add_argument("--batch", type=int, help="rows per batch (default: the run's)")
    parser.add_argument("--stride", type=int, help="tokens scored per window, the rest is context (default: the run's eval.stride)")
    parser.add_argument("--pseudo_tokens", type=int, help="tokens of a masked model whose pseudo-log-likelihood is taken, a pass each")
    arguments = parser.parse_args(argv)
    cli.keep_compilations()
    from lm.evaluate import evaluate_run

    cli.print_result(evaluate_run(arguments.workdir, arguments.step, arguments.split, arguments.data, arguments.batch, arguments.stride,
                                  arguments.pseudo_tokens))


if __name__ == "__main__":
    cli.run(main)
