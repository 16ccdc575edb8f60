"""Continues prompts with a trained model; texts on standard output, a JSON object on its last line.

    python scripts/generate.py --workdir=runs/quickstart --prompt="The state of the union is" --temperature=0.8 --num=3
    python scripts/generate.py --workdir=runs/t5 --prompt="The ____ of the union is ____." --beams=4

    python scripts/generate.py --workdir=runs/imported --chat --prompt="What is the capital of France?" --temperature=0

With --chat a prompt is what a user says, and the completion the answer: the tokenizer's chat template (data.chat_template) says how.
A run with objective.name=span or denoisers fills the gaps of a prompt: each completion is the whole text, with its `gaps`.
"""

import argparse

from lm import cli
from lm.errors import ConfigError


def options() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="work directory of the run")
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be given several times")
    parser.add_argument("--suffix", metavar="TEXT", help="text after the gap that the completion fills (runs with objective.name=infill)")
    parser.add_argument("--chat", action="store_true", help="the prompts are what a user says, put into the tokenizer's chat template")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before a conversation (with --chat)")
    parser.add_argument("--gap", metavar="MARK", default="____",
                        help="what marks a gap in a prompt (default ____; runs with objective.name=span or denoisers)")
    parser.add_argument("--mode", choices=("R", "S", "X"),
                        help="short gaps (R, the default), long ones (X), or the rest of the text (S; runs with objective.name=denoisers)")
    parser.add_argument("--max_tokens", type=int,
                        help="most tokens to add (default: what fits in the context, at most 128), or of each gap (at most 64)")
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
    return parser


def main(argv):
    """Entry point."""
    arguments = options().parse_args(argv)
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
    from lm.objectives.span import Span
    from lm.run import open_run

    sampling = Sampling(**chosen)
    run = open_run(arguments.workdir)
    _check_chat(arguments, run)
    if isinstance(run.objective, Span):
        cli.print_result(_fill(run, arguments, sampling, drafts))
        return
    if arguments.mode:
        raise ConfigError(f"--mode needs a run with objective.name=denoisers: {run.workdir} has {run.config.objective.name}")
    if not isinstance(run.model, LanguageModel) or run.objective.paired:
        raise ConfigError(f"{arguments.workdir} has model.name={run.config.model.name}, which does not continue a text: docs/families.md "
                          "says what it can do")
    params, _ = run.parameters(step=arguments.step)
    draft = _draft(arguments.draft, run) if arguments.draft else None
    generator = Generator(run.model, params, run.tokenizer, draft, run.objective.bidirectional_prompts)
    prompts = arguments.prompt if arguments.suffix is None else _gaps(run, arguments.prompt, arguments.suffix)
    prompts = _conversations(run, arguments.prompt, arguments.system) if arguments.chat else prompts
    # A chat template writes what a text begins with itself; a row of infilling begins with it whatever prompts do.
    completions = generator(prompts, arguments.max_tokens, sampling, arguments.beams, arguments.seed, arguments.num, drafts,
                            begin=False if arguments.chat else True if arguments.suffix is not None else None)
    results = []
    for completion in completions:
        text = run.tokenizer.continuation(completion.tokens)
        print(f"{arguments.prompt[completion.prompt]}{chr(10) if arguments.chat else ''}{text}{arguments.suffix or ''}\n" + "-" * 20)
        results.append({"text": text, "logprob": completion.logprob})
    tokens = sum(len(completion.tokens) + completion.ended for completion in completions)
    speculation = {"tokens_per_pass": generator.tokens_per_pass} if drafts else {}
    cli.print_result({"completions": results, "tokens_per_second": tokens / generator.seconds, **speculation})


def _check_chat(arguments, run):
    """ConfigError for options that do not go with --chat, or that need it."""
    from lm.objectives.span import Span

    if arguments.system is not None and not arguments.chat:
        raise ConfigError("--system is what a conversation begins with: add --chat")
    if arguments.chat and (arguments.suffix is not None or isinstance(run.objective, Span) or run.objective.bidirectional_prompts):
        raise ConfigError(f"--chat continues a conversation from left to right: leave out --suffix, and take a run with objective.name="
                          f"causal ({run.workdir} has {run.config.objective.name})")


def _conversations(run, prompts: list[str], system: str | None) -> list:
    """Token ids of conversations in which the user has said a prompt."""
    from lm.generate.chat import prompt_ids

    first = [] if system is None else [{"role": "system", "content": system}]
    return [prompt_ids(run.tokenizer, [*first, {"role": "user", "content": prompt}]) for prompt in prompts]


def _fill(run, arguments, sampling, drafts: int) -> dict:
    """The prompts with their gaps filled; ConfigError for options that only continue a text."""
    from lm.generate import fill

    if drafts or arguments.suffix is not None:
        raise ConfigError(f"--{'drafts' if drafts else 'suffix'} is not for objective.name={run.config.objective.name}, which fills the "
                          f"gaps of a prompt: mark each with {arguments.gap or '____'}")
    return fill.answer(run, arguments.prompt, arguments.gap, arguments.step, mode=arguments.mode, max_tokens=arguments.max_tokens,
                       sampling=sampling, beams=arguments.beams, seed=arguments.seed, num=arguments.num)


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
