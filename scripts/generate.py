"""Continues prompts with a trained model; texts on standard output, a JSON object on its last line.

    python scripts/generate.py --workdir=runs/quickstart --prompt="The state of the union is" --temperature=0.8 --num=3
"""

import argparse

from lm import cli
from lm.errors import ConfigError


def main(argv):
    """Entry point."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be given several times")
    parser.add_argument("--max_tokens", type=int, help="most tokens to add (default: what fits in the context, at most 128)")
    parser.add_argument("--temperature", type=float, default=argparse.SUPPRESS, help="0 is greedy (default 1)")
    parser.add_argument("--top_k", type=int, default=argparse.SUPPRESS, help="draw among the k likeliest tokens (default: all)")
    parser.add_argument("--top_p", type=float, default=argparse.SUPPRESS, help="draw among the likeliest tokens of this total probability")
    parser.add_argument("--beams", type=int, default=0, help="beam search of this width instead of sampling")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--num", type=int, default=1, help="completions per prompt")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    arguments = parser.parse_args(argv)
    chosen = {name: value for name, value in vars(arguments).items() if name in ("temperature", "top_k", "top_p")}
    if arguments.beams < 0 or arguments.seed < 0:
        raise ConfigError("--beams and --seed must not be negative")
    if arguments.beams and chosen:
        raise ConfigError(f"--beams searches without drawing: leave out {', '.join('--' + name for name in chosen)}")
    from lm.generate import Generator, Sampling
    from lm.run import open_run

    sampling = Sampling(**chosen)
    run = open_run(arguments.workdir)
    params, _ = run.parameters(step=arguments.step)
    generator = Generator(run.model, params, run.tokenizer)
    completions = generator(arguments.prompt, arguments.max_tokens, sampling, arguments.beams, arguments.seed, arguments.num)
    results = []
    for completion in completions:
        text = run.tokenizer.decode(completion.tokens)
        print(f"{arguments.prompt[completion.prompt]}{text}\n" + "-" * 20)
        results.append({"text": text, "logprob": completion.logprob})
    tokens = sum(len(completion.tokens) + completion.ended for completion in completions)
    cli.print_result({"completions": results, "tokens_per_second": tokens / generator.seconds})


if __name__ == "__main__":
    cli.run(main)
