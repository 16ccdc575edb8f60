"""What stands inside a model with hidden variables: sentences of a VAE's codes, or the classes that an HMM gives to words.

    python scripts/codes.py --workdir=runs/vae --reconstruct="We are at peace." --sample=3
    python scripts/codes.py --workdir=runs/vae --interpolate "We are at peace." "The debt has grown." --steps=5
    python scripts/codes.py --workdir=runs/hmm --tag="We are at peace."

The last line of standard output is a JSON object with what was asked for.
"""

from lm import cli
from lm.errors import ConfigError


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="work directory of a run with model.name=vae or hmm")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--reconstruct", metavar="TEXT", action="append", help="write a text from its code; may be given several times")
    parser.add_argument("--sample", type=int, metavar="N", help="write texts of N codes of the prior")
    parser.add_argument("--interpolate", nargs=2, metavar=("TEXT", "TEXT"), help="write texts on the way from one code to the other")
    parser.add_argument("--steps", type=int, default=5, help="of the interpolation, both ends included")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--tag", metavar="TEXT", action="append", help="classes of a text's tokens; may be given several times")
    arguments = parser.parse_args(argv)
    if not (arguments.reconstruct or arguments.sample is not None or arguments.interpolate or arguments.tag):
        raise ConfigError("give --reconstruct, --sample, --interpolate or --tag")
    cli.keep_compilations()
    from lm.generate import codes

    if arguments.tag:
        if arguments.reconstruct or arguments.sample is not None or arguments.interpolate:
            raise ConfigError("--tag is for runs with model.name=hmm, and the rest for those with model.name=vae")
        tagged = codes.tags(arguments.workdir, arguments.tag, arguments.step)
        print("\n".join(" ".join(f"{token.strip() or '_'}/{number}" for token, number in text) for text in tagged))
        cli.print_result({"tags": tagged})
        return
    model, result = codes.Codes(arguments.workdir, arguments.step), {}
    if arguments.reconstruct:
        result["reconstruct"] = model.reconstruct(arguments.reconstruct)
    if arguments.sample is not None:
        result["sample"] = model.sample(arguments.sample, arguments.seed)
    if arguments.interpolate:
        result["interpolate"] = model.interpolate(*arguments.interpolate, arguments.steps)
    for name, texts in result.items():
        print(f"{name}\n" + "\n".join(f"  {text}" for text in texts))
    cli.print_result(result)


if __name__ == "__main__":
    cli.run(main)
