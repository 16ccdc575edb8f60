"""EleutherAI's lm-evaluation-harness (Gao et al. 2021; PyPI lm_eval) on a run, through its interface for models.

    python -m lm.interop.lm_eval --model lm --model_args workdir=W --tasks TASK,...

takes all arguments of the harness's own command `lm_eval`, which finds only the models of its own package: this one registers ours
under `lm` first. scripts/eval.py --suite=lm_eval:TASK,... is the same with one JSON object as its output.

model_args: workdir; step (checkpoint, default the latest); max_length (tokens that the model reads at most, default all it can);
stride (of rolling windows; default max_length, so that each token is read once and has what its window holds); seed (of sampling);
score_bos (default False: loglikelihood_rolling scores the text alone; True: the bos that the tokenizer puts before a text is scored
too, after another bos, as the harness's model hf does).
"""

import functools
import os
import sys

import jax
import numpy as np

from lm import cli
from lm.data.tokenizers import Tokenizer
from lm.errors import ConfigError
from lm.evaluate.continuations import Request, overlap, rolling
from lm.evaluate.suite import HARNESS, Subject, open_subject
from lm.generate import Generator, Sampling
from lm.generate.chat import prompt_text

FIRST_TOKENS = 32  # that a prompt gets before its stop strings are looked for, then as many as it has got
ROWS = 16  # prompts of a batch
MODEL_ARGS = ("workdir", "step", "max_length", "stride", "seed", "score_bos")


def encode(tokenizer: Tokenizer, text: str, bos: bool | None = None) -> list[int]:
    """Ids of a text in which special tokens may stand (chat templates write them); `bos` None: as the tokenizer's prompts begin.

    A text that begins with bos already gets no other.
    """
    ids = tokenizer.encode_with_specials(text).tolist()
    if bos or (bos is None and tokenizer.prompt_bos and ids[:1] != [tokenizer.bos_id]):
        return [tokenizer.bos_id, *ids]
    return ids


class Prompted:
    """Completes prompts up to stop strings, batched by length; the prompts that have not come to one go on together."""

    def __init__(self, subject: Subject, context: int, seed: int = 0):
        objective = subject.run.objective
        self.subject, self.context, self.tokenizer, self._seed = subject, context, subject.run.tokenizer, seed
        self._generator = Generator(subject.run.model, subject.params, self.tokenizer, prefix=objective.bidirectional_prompts)
        self._rows = subject.mesh.shape["replica"] * -(-(subject.batch or ROWS) // subject.mesh.shape["replica"])
        self.cut_prompts = 0

    def __call__(self, prompts: list[list[int]], stops: list[str], tokens: int, sampling: Sampling) -> list[str]:
        """The text that follows each prompt of ids, before the first of the stop strings, the document's end or `tokens` tokens."""
        room = self.context - tokens
        if room < 1:
            raise ConfigError(f"{tokens} tokens are asked for, and the model's context is {self.context}: lower max_gen_toks "
                              "(--gen_kwargs max_gen_toks=N, or generation_kwargs of the task)")
        self.cut_prompts += sum(len(prompt) > room for prompt in prompts)
        whole = [prompt[-room:] for prompt in prompts]
        done: dict[int, str] = {}
        written: list[list[int]] = [[] for _ in prompts]
        share = min(FIRST_TOKENS, tokens)
        while len(done) < len(prompts):
            left = sorted((i for i in range(len(prompts)) if i not in done), key=lambda i: -len(whole[i]))
            for start in range(0, len(left), self._rows):
                self._go_on(left[start : start + self._rows], whole, written, done, stops, share, tokens, sampling)
            share = min(2 * share, tokens)
        return [done[i] for i in range(len(prompts))]

    def _go_on(self, rows, whole, written, done, stops, share, tokens, sampling):
        """At most `share` tokens more for some prompts, and `tokens` in all; those that are finished get their text into `done`."""
        some = min(share, tokens - len(written[rows[0]]))  # all that are left have as many
        ids = [np.array(whole[i] + written[i], np.int32) for i in rows]
        ids += ids[:1] * (_rows_of(len(rows), self.subject.mesh.shape["replica"]) - len(rows))  # few shapes are compiled
        with jax.set_mesh(self.subject.mesh):
            completions = self._generator(ids, some, sampling, seed=self._seed, begin=False)
        self._seed += 1
        for i, completion in zip(rows, completions, strict=False):
            written[i] += completion.tokens
            text = self.tokenizer.decode(written[i])
            stopped = functools.reduce(lambda text, stop: text.split(stop)[0] if stop else text, stops, text)  # the harness's rule
            if stopped != text or completion.ended or len(written[i]) >= tokens:
                done[i] = stopped


def _rows_of(count: int, devices: int) -> int:
    """The least power of two times the devices that holds `count` rows."""
    return devices * (1 << (-(-count // devices) - 1).bit_length())


def _check(unknown: dict, **numbers):
    """ConfigError for arguments that are not known, and for numbers that are none."""
    if unknown:
        raise ConfigError(f"model_args has {', '.join(sorted(unknown))}, and only {', '.join(MODEL_ARGS)} are known: leave the others out")
    for name, value in numbers.items():
        if value is not None and not isinstance(value, int):
            raise ConfigError(f"model_args has {name}={value}: give a whole number")


class Answers:
    """A run's checkpoint as a model of the harness, but for what that brings itself: see `model_class`."""

    def __init__(self, workdir=None, step=None, max_length=None, stride=None, seed=0, score_bos=False, batch_size=None,
                 device=None, max_batch_size=None, subject: Subject | None = None, **unknown):
        """`batch_size` rows of max_length tokens, more of shorter ones; the devices are JAX's, whatever `device` says."""
        super().__init__()
        _check(unknown, step=step, max_length=max_length, stride=stride, seed=seed)
        # The harness's bootstrap would fork this process, and a copy of JAX's threads may hang.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        if workdir is None and subject is None:
            raise ConfigError("model_args names no run: write --model_args workdir=W")
        batch = int(batch_size) if str(batch_size or "auto").isdigit() else None
        self.subject = subject or open_subject(workdir, step, batch, max_length=max_length)
        if self.subject.masked:
            raise ConfigError(f"{self.subject.run.workdir} is a masked model, and the harness asks for likelihoods: "
                              "--suite=minimal_pairs:FILE works on it")
        self._stride, self._score_bos = int(stride or 0), score_bos
        self.max_length = self.subject.context
        self.text = self.subject.run.tokenizer
        self._prompted = None
        self._seed = int(seed)
        self.counted = {"requests": 0, "distinct_requests": 0, "tokens_scored": 0, "cut_requests": 0, "cut_tokens": 0,
                        "overlap_tokens": 0, "generated_requests": 0, "cut_prompts": 0}

    @property
    def eot_token_id(self):
        """The id that ends a document."""
        return self.text.eos_id

    @property
    def prefix_token_id(self):
        """The id that stands before a text without context."""
        return self.text.bos_id

    @property
    def tokenizer_name(self) -> str:
        """What tells tokenizers apart in the harness's caches."""
        return self.text.fingerprint()

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        """See `encode`."""
        return encode(self.text, string, add_special_tokens)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        asked = [Request(tuple(context) or (self.prefix_token_id,), tuple(wanted)) for _, context, wanted in requests]
        found = self._scores(asked)
        answers = [(float(nats), bool(best)) for nats, best in zip(found.logprobs, found.greedy, strict=True)]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _scores(self, requests):
        found = self.subject.scorer(requests)
        for name in self.counted.keys() & found.counts.keys():
            self.counted[name] += found.counts[name]
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """Log-probability of each request's text in nats, by windows."""
        texts = [request.args[0] for request in requests]
        bos = None if self._score_bos else False
        windows = [rolling(encode(self.text, text, bos), self.prefix_token_id, self.max_length, self._stride) for text in texts]
        found = self._scores([window for each in windows for window in each])
        self.counted["overlap_tokens"] += sum(map(overlap, windows))
        answers, first = [], 0
        for text, each in zip(texts, windows, strict=True):
            answers.append(float(found.logprobs[first : first + len(each)].sum()))
            first += len(each)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def generate_until(self, requests, disable_tqdm=False):
        """What follows each request's text up to its stop strings; requests with the same settings go together."""
        from lm_eval.models.utils import normalize_gen_kwargs

        self._prompted = self._prompted or Prompted(self.subject, self.max_length, self._seed)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        answers = [""] * len(requests)
        for places in groups.values():
            wanted = normalize_gen_kwargs(requests[places[0]].args[1], 256)
            stops, tokens = wanted.pop("until"), wanted.pop("max_gen_toks")
            prompts = [self.tok_encode(requests[i].args[0]) for i in places]
            texts = self._prompted(prompts, stops, tokens, sampling_of(wanted))
            for i, text in zip(places, texts, strict=True):
                answers[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        self.counted["generated_requests"] += len(requests)
        self.counted["cut_prompts"] = self._prompted.cut_prompts
        return answers

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        """A conversation as a text; without `add_generation_prompt` its last message is the beginning of the answer."""
        text = prompt_text(self.text, chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        # What the assistant has begun to say is gone on with: the template's end of that message is cut off.
        begun = chat_history[-1]["content"].strip()
        return text[: text.rindex(begun) + len(begun)]

    def chat_template(self, chat_template=False):
        """The tokenizer's template, where one is asked for."""
        return self.text.chat_template if chat_template else ""

    def get_model_info(self) -> dict:
        """What the harness keeps with its results."""
        return {"workdir": str(self.subject.run.workdir), "step": self.subject.step, "max_length": self.max_length,
                "stride": self._stride or self.max_length, **self.counted}


@functools.cache
def model_class():
    """The harness's model, registered there as `lm`. ConfigError where the harness is not installed."""
    try:
        import lm_eval.models  # noqa: F401 - which knows the harness's own models; it must come before others
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise ConfigError(f"the lm-evaluation-harness is not installed ({error}): run `pip install lm_eval`") from error
    return register_model("lm")(type("HarnessModel", (Answers, TemplateLM), {}))


def sampling_of(wanted: dict) -> Sampling:
    """How generation_kwargs, normalised by the harness, choose tokens. ConfigError for what we do not have."""
    wanted = dict(wanted)
    drawn, temperature = wanted.pop("do_sample", False), float(wanted.pop("temperature", 1.0))
    chosen = {"top_k": int(wanted.pop("top_k", 0) or 0), "top_p": float(wanted.pop("top_p", 1.0))}
    if wanted:
        raise ConfigError(f"generation_kwargs has {', '.join(sorted(wanted))}, and only until, max_gen_toks, do_sample, temperature, "
                          "top_k and top_p are known here: leave the others out")
    # Without do_sample the harness means the likeliest tokens.
    return Sampling(temperature, **chosen) if drawn else Sampling(0.0)


def measure(subject: Subject, tasks: list[str], include: str | None = None, shots: int | None = None) -> tuple[dict, dict]:
    """({"lm_eval:TASK": what the harness found, under its own names}, how and what all the tasks together asked of the model).

    `include` is a folder of YAML files with other tasks than the harness's own. ConfigError for an unknown task.
    """
    build = model_class()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if include is not None and not os.path.isdir(include):
        raise ConfigError(f"--include={include} is not a folder of tasks (YAML files)")
    manager = TaskManager(include_path=include, include_defaults=include is None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown and include is not None:  # reading the harness's own thousands of tasks takes a while
        manager = TaskManager(include_path=include)
        unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(f"the harness has no task {', '.join(unknown)}: `lm_eval ls tasks` lists its own, --include=DIR adds others")
    model = build(subject=subject, stride=subject.stride)
    found = simple_evaluate(model, tasks=list(tasks), num_fewshot=shots, limit=subject.limit or None, task_manager=manager,
                            log_samples=False, bootstrap_iters=1000)
    results = {}
    for task, metrics in found["results"].items():
        kept = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        results[f"{HARNESS}:{task}"] = kept | {"items": found.get("n-samples", {}).get(task, {}).get("effective"),
                                               "shots": found.get("n-shot", {}).get(task)}
    return results, model.get_model_info()


def main(argv: list[str]):
    """The harness's own command, which knows the model `lm`."""
    cli.keep_compilations()
    model_class()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *argv]
    cli_evaluate()


if __name__ == "__main__":
    # This file is `__main__` now: the class must come from the module that others import.
    from lm.interop import lm_eval as module

    cli.run(module.main)
