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
    parser.add_argument("--suffix", metavar="TEXT", help="text after the gap that the completion fills (runs with objective.name=infill)")
    parser.add_argument("--max_tokens", type=int, help="most tokens to add (default: what fits in the context, at most 128)")
    parser.add_argument("--temperature", type=float, default=argparse.SUPPRESS, help="0 is greedy (default 1)")
    parser.add_argument("--top_k", type=int, default=argparse.SUPPRESS, help="draw among the k likeliest tokens (default: all)")
    parser.add_argument("--top_p", type=float, default=argparse.SUPPRESS, help="draw among the likeliest tokens of this total probability")
    parser.add_argument("--beams", type=int, default=0, help="beam search of this width instead of sampling")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--num", type=int, default=1, help="completions per prompt")
    parser.add_argument("--drafts", type=int, help="tokens drafted for each pass of the model: same distribution, fewer passes (default 0)")
    parser.add_argument("--draft", metavar="WORKDIR", help="run of a smaller model that drafts, 4 tokens unless --drafts says otherwise; "
                                                           "without it, drafts are what followed the same words before")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    arguments = parser.parse_args(argv)
    chosen = {name: value for name, value in vars(arguments).items() if name in ("temperature", "top_k", "top_p")}
    if arguments.beams < 0 or arguments.seed < 0:
        raise ConfigError("--beams and --seed must not be negative")
    drafts = (4 if arguments.draft else 0) if arguments.drafts is None else arguments.drafts
    if drafts < 0 or (arguments.draft and not drafts) or (drafts and arguments.beams):
        raise ConfigError(f"--drafts={drafts} is not allowed: at least 1 with --draft, at least 0 without, and 0 with --beams")
    if arguments.beams and chosen:
        raise ConfigError(f"--beams searches without drawing: leave out {', '.join('--' + name for name in chosen)}")
    cli.keep_compilations()
    from lm.generate import Generator, Sampling
    from lm.models import LanguageModel
    from lm.run import open_run

    sampling = Sampling(**chosen)
    run = open_run(arguments.workdir)
    if not isinstance(run.model, LanguageModel) or run.objective.paired:
        raise ConfigError(f"{arguments.workdir} has model.name={run.config.model.name}, which does not continue a text: docs/families.md "
                          "says what it can do")
    params, _ = run.parameters(step=arguments.step)
    draft = _draft(arguments.draft, run) if arguments.draft else None
    generator = Generator(run.model, params, run.tokenizer, draft, run.objective.bidirectional_prompts)
    prompts = arguments.prompt if arguments.suffix is None else _gaps(run, arguments.prompt, arguments.suffix)
    completions = generator(prompts, arguments.max_tokens, sampling, arguments.beams, arguments.seed, arguments.num, drafts)
    results = []
    for completion in completions:
        text = run.tokenizer.decode(completion.tokens)
        print(f"{arguments.prompt[completion.prompt]}{text}{arguments.suffix or ''}\n" + "-" * 20)
        results.append({"text": text, "logprob": completion.logprob})
    tokens = sum(len(completion.tokens) + completion.ended for completion in completions)
    speculation = {"tokens_per_pass": generator.tokens_per_pass} if drafts else {}
    cli.print_result({"completions": results, "tokens_per_second": tokens / generator.seconds, **speculation})


def _gaps(run, prompts: list[str], suffix: str) -> list:
    """Token ids that ask for what stands between each prompt and the suffix; ConfigError unless the run has learned to fill gaps."""
    from lm.objectives.infill import Infill

    if not isinstance(run.objective, Infill):
        raise ConfigError(f"--suffix needs a run with objective.name=infill: {run.workdir} has {run.config.objective.name}")
    encode = run.tokenizer.encode
    return [run.objective.prompt(encode(prompt), encode(suffix)) for prompt in prompts]


def _draft(workdir: str, run):
    """Model and parameters of the run that drafts; ConfigError unless its tokens are those of `run`."""
    from lm.run import open_run

    draft = open_run(workdir)
    if draft.tokenizer.fingerprint() != run.tokenizer.fingerprint():
        raise ConfigError(f"--draft={workdir} has another tokenizer than --workdir={run.workdir}: train it with the same one")
    return draft.model, draft.parameters()[0]


if __name__ == "__main__":
    cli.run(main)
