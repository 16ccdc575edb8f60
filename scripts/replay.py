"""Makes one step of a run again, from the checkpoint before it: what was in the batch, in every tensor, and which row is to blame.

    python scripts/replay.py --workdir=runs/quickstart --step=1234 --bisect

Steps count from 1, as in metrics.jsonl; step N is the update on the state after N-1 steps. Prints the documents of the batch and
statistics of every activation, parameter and gradient, and says whether loss and gradient norm are those that the run recorded: they
are, bit for bit, on the same number and kind of devices. Nothing is written into the work directory, and the run may still be training.
The last line of standard output is a JSON object with step, from_checkpoint, rerun_steps, loss, recorded_loss, agrees, documents,
examples, layers and suspect.
"""

from lm import cli


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    parser.add_argument("--step", type=int, required=True, help="step to make again, counted from 1")
    parser.add_argument("--bisect", action="store_true", help="each row alone: name the row and the first tensor that is not finite or "
                        "out of line")
    parser.add_argument("--text", action="store_true", help="print the whole text of the rows")
    arguments = parser.parse_args(argv)
    cli.keep_memory()
    cli.keep_compilations()
    from lm.replay import replay

    cli.print_result(replay(arguments.workdir, arguments.step, arguments.bisect, arguments.text))


if __name__ == "__main__":
    cli.run(main)
