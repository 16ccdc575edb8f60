"""Chat templates: as transformers renders them, never out of their sandbox, and answers that end where the template says."""

import importlib.util
import json
import pathlib
import resource

import jax
import numpy as np
import pytest

from lm import config as configs
from lm import models
from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError
from lm.generate import Generator, Sampling, chat
from lm.generate.chat import prompt_ids, render

BYTES = ByteTokenizer()
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 < 2 & \"x\" \u4e2d?"}]
CHATML = ("{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\nYou.<|im_end|>\\n' }}"
          "{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
LLAMA = """{{- bos_token }}
{%- set date = strftime_now("%Y") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
[{{ date | length }}] {{ system }}
{% for message in messages %}
    {% if message.role not in ["user", "assistant"] %}
        {{ raise_exception("roles must alternate") }}
    {% endif %}
    {% if message.content is none %}{% continue %}{% endif %}
{% generation %}<{{ message.role }}> {{ message.content | tojson }}{% endgeneration %}{{ eos_token }}
{% endfor %}
"""
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_conversation_in_words():
    assert render(CHATML, MESSAGES[1:], bos_token="<s>") == (
        "<|im_start|>system\nYou.<|im_end|>\n<|im_start|>user\n1 < 2 & \"x\" \u4e2d?<|im_end|>\n<|im_start|>assistant\n")
    assert not render(CHATML, MESSAGES, add_generation_prompt=False).endswith("assistant\n")
    assert render(LLAMA, MESSAGES, **SPECIALS) == '<s>[4] Be brief.\n<user> "1 < 2 & \\"x\\" \u4e2d?"</s>\n'


def test_there_are_no_tools_and_no_documents():
    template = "{% if tools is not none %}T{% endif %}{% if documents is not none %}D{% endif %}{{ tools is defined }}"
    assert render(template, MESSAGES) == "True" and render(template, MESSAGES, tools=[]) == "TTrue"


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_transformers_renders_the_same(template):
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="needs the extra parity: scripts/test.sh --parity")
    for messages in (MESSAGES, MESSAGES[1:], [*MESSAGES, {"role": "assistant", "content": "Yes."}, MESSAGES[1]]):
        for prompt in (True, False):
            theirs, _ = utils.render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt, **SPECIALS)
            assert render(template, messages, prompt, **SPECIALS) == theirs[0]


@pytest.mark.parametrize(("template", "words"), [
    ("{{ ''.__class__.__mro__ }}", "does what a template must not do: access to attribute '__class__'"),
    ("{{ messages.append(1) }}", "does what a template must not do"),
    ("{{ cycler.__init__.__globals__ }}", "does what a template must not do"),
    ("{{ messages[0].update({'role': 1}) }}", "does what a template must not do"),
    ("{% if %}", "has an error in line 1"),
    ("a\n{% for x in y %}", "has an error in line 2"),
    ("{{ raise_exception('no system, please') }}", "refuses these messages: no system, please"),
    ("{{ nothing.at.all }}", "refuses these messages: 'nothing' is undefined"),
    ("{% include 'file' %}", "fails: TypeError"),
    ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: RecursionError"),
    ("{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaa' }}{% endfor %}", "writes more than 1000000 characters"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "runs for more than 1 seconds"),
    ("{{ 9 ** 999999999 }}", "computes a number of more than 4096 bits"),
    ("{{ 'a' * 10000000000 }}", "takes more than 256 MiB"),
    ("{{ 'a' | center(9999999999) }}", "takes more than 256 MiB"),
    ("{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "takes more than 256 MiB"),
])
def test_a_bad_template_is_one_clear_line(template, words, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 1.0 if "range(99999)" in words or "runs" in words else 30.0)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ConfigError, match="the chat template ") as caught:
        render(template, MESSAGES)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits and MESSAGES[0]["role"] == "system"


def test_special_tokens_of_a_template_become_ids():
    tokenizer = BYTES.changed(chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert prompt_ids(tokenizer, [{"role": "user", "content": "a\u4e2d"}]).tolist() == [257, *"a\u4e2d".encode(), 258]
    with pytest.raises(ConfigError, match="has no chat template"):
        prompt_ids(BYTES, MESSAGES)


@pytest.fixture(scope="module")
def model():
    config = configs.default()
    config.model.update(layers=1, width=16, heads=2)
    model = models.build(config.model, BYTES.vocab_size, 64)
    return model, model.init(jax.random.key(0))


@pytest.mark.parametrize("options", [{}, {"beams": 2}, {"drafts": 2}])
def test_generation_ends_at_any_of_several_ids(model, options):
    free = Generator(*model, BYTES)(["ab"], 12, Sampling(temperature=0), **options)[0]
    assert len(free.tokens) == 12
    place = next(i for i in range(1, 12) if free.tokens[i] not in free.tokens[:i])
    if options.get("beams"):  # where an early end changes which beams are best
        ending = Generator(*model, BYTES.changed(_stops=tuple(range(256))))(["ab"], 12, Sampling(temperature=0), **options)[0]
        assert ending.ended and ending.tokens == []
        return
    stops = BYTES.changed(_stops=(250, free.tokens[place]))
    assert stops.stop_ids == (258, 250, free.tokens[place])
    (stopped,) = Generator(*model, stops)(["ab"], 12, Sampling(temperature=0), **options)
    assert stopped.ended and stopped.tokens == free.tokens[:place]


def test_prompts_begin_as_the_tokenizer_says(model):
    greedy = Sampling(temperature=0)
    begun, bare = Generator(*model, BYTES), Generator(*model, BYTES.changed(prompt_bos=False))
    ids = BYTES.encode("ab")
    assert begun(["ab"], 5, greedy) == bare(["ab"], 5, greedy, begin=True) == bare([np.array([257, *ids])], 5, greedy)
    assert bare(["ab"], 5, greedy) == begun([ids], 5, greedy, begin=False)
    assert bare(["ab"], 5, greedy)[0].logprob != begun(["ab"], 5, greedy)[0].logprob
    assert bare([""], 5, greedy) == begun([""], 5, greedy)  # there is nothing else to begin with


def script():
    path = pathlib.Path(__file__).parents[2] / "scripts" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_script", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_the_script_answers(tmp_path, capsys, monkeypatch):
    from lm.train import train

    monkeypatch.setattr("lm.cli.keep_compilations", lambda: None)
    (tmp_path / "text.txt").write_text("a line of a text about nothing\n" * 40)
    template = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
    config = configs.default()
    config.model.update(layers=1, width=16, heads=2)
    config.data.update(source=(f"text:{tmp_path}/text.txt",), documents="line", tokenizer="bytes", context=48, global_batch=8, workers=1,
                       validation_fraction=0.0, cache_dir=str(tmp_path / "cache"), chat_template=template)
    config.train.steps, config.eval.every, config.eval.split = 1, 0, "none"
    train(configs.validate(config), tmp_path / "run")
    script().main([f"--workdir={tmp_path}/run", "--chat", "--system=no", "--prompt=hi", "--max_tokens=4", "--temperature=0"])
    text, answer = capsys.readouterr().out.split("\n", 1)
    from lm.run import open_run

    run = open_run(tmp_path / "run")
    expected = Generator(run.model, run.parameters()[0], BYTES)([BYTES.encode("s:no;u:hi;a:")], 4, Sampling(temperature=0))[0]
    assert text == "hi" and json.loads(answer.splitlines()[-1])["completions"][0]["text"] == BYTES.decode(expected.tokens)
    for arguments, words in ((["--system=x"], "add --chat"), (["--chat", "--suffix=x"], "leave out --suffix")):
        with pytest.raises(ConfigError, match=words):
            script().main([f"--workdir={tmp_path}/run", "--prompt=hi", *arguments])
