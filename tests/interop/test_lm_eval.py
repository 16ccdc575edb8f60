"""The harness's tasks on our model against its own model `hf` on the same weights; tasks and data are local files."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
               "TOKENIZERS_PARALLELISM": "false", "DISABLE_MULTIPROC": "1"}
NEEDS = "needs the extra parity: scripts/test.sh --parity"
pytest.importorskip("lm_eval", reason=NEEDS)
pytest.importorskip("torch", reason=NEEDS)
pytest.importorskip("transformers", reason=NEEDS)

from lm.errors import ConfigError  # noqa: E402 - after the reason to skip
from lm.evaluate import suite  # noqa: E402
from lm.generate import Sampling  # noqa: E402
from lm.interop import convert, lm_eval  # noqa: E402

CONTEXT = 48
SENTENCES = ["The cat sat on the mat and the dog sat on the rug.", "A small bird sang in the old tree all day long.",
             "Rain fell on the roof while the children slept.", "He said that the answer is no, but she said yes!"]
CHOICES = [{"question": "Where did the cat sit?", "options": ["on the mat", "in the old tree all day", "no"], "gold": 0},
           {"question": "Who sang?", "options": ["a dog", "a small bird", "the rain on the roof"], "gold": 1},
           {"question": "What did she say?", "options": ["yes", "no", "the answer is that she slept"], "gold": 0},
           {"question": "What fell?", "options": ["the bird, which sang on the rug", "rain", "é ü"], "gold": 1},
           {"question": "Rain? " * 30, "options": ["fell on the roof", "slept"], "gold": 1}]
CHAT = ("{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}")
TASKS = {
    "local_choice": {"output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "gold",
                     "doc_to_choice": "options", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_bytes"}]},
    "local_last_word": {"output_type": "loglikelihood", "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
                        "doc_to_target": "{{' '+text.split(' ')[-1]}}", "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}]},
    "local_rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
                      "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}]},
    "local_generate": {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}",
                       "generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 12, "do_sample": False},
                       "metric_list": [{"metric": "exact_match"}]},
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks on files."""
    folder = tmp_path_factory.mktemp("tasks")
    texts = [{"text": text} for text in SENTENCES] + [{"text": " ".join(SENTENCES * 3)}]
    for name, items in (("choices", CHOICES), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for name, task in TASKS.items():
        file = folder / ("choices.jsonl" if name == "local_choice" else "texts.jsonl")
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test", **task}
        (folder / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML
    return folder


def tokenizer_with(bos: bool):
    """A byte-level BPE tokenizer of 300 ids, with or without <s> before every text."""
    import tokenizers
    import transformers

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer, model.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(SENTENCES, trainer)
    if bos:
        model.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="</s>",
                                                chat_template=CHAT)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folders(request, tmp_path_factory):
    """(folder of a tiny transformers model, work directory that was made of it, whether its tokenizer adds bos)."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}
    if request.param == "gpt2":
        config = transformers.GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, **sizes)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                          num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=False, **sizes)
        model = transformers.LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "theirs")
    tokenizer_with(request.param == "llama").save_pretrained(folder / "theirs")
    convert.import_run(folder / "theirs", folder / "ours")
    return folder / "theirs", folder / "ours", request.param == "llama"


LLAMA = pytest.mark.parametrize("folders", ["llama"], indirect=True)


@pytest.fixture(scope="module")
def theirs(folders, tasks):
    """What the harness's own model gets."""
    return evaluated("hf", {"pretrained": str(folders[0]), "device": "cpu", "dtype": "float32", "batch_size": 2}, tasks)


def evaluated(model, arguments, tasks, names=tuple(TASKS), **options):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lm_eval.model_class()
    return simple_evaluate(model, arguments, list(names), bootstrap_iters=100, **options,
                           task_manager=TaskManager(include_path=str(tasks), include_defaults=False))


def close(ours, theirs, tolerance=1e-4):
    """Whether two results of a task are the same numbers."""
    return {name: value for name, value in ours.items() if isinstance(value, float)} == pytest.approx(
        {name: value for name, value in theirs.items() if isinstance(value, float)}, rel=tolerance, abs=tolerance)


def same(ours, theirs):
    """Asserts that the answers to a sample's requests are the same texts, or numbers to 1e-4."""
    for (mine,), (other,) in zip(ours, theirs, strict=True):
        if isinstance(other, str):
            assert mine == other
        else:
            np.testing.assert_allclose(np.asarray(mine, float), np.asarray(other, float), rtol=1e-4, atol=1e-4)


def test_numbers_and_answers_are_those_of_the_harness_s_own_model(folders, tasks, theirs):
    _, workdir, bos = folders
    ours = evaluated("lm", {"workdir": str(workdir), "score_bos": bos}, tasks)
    for task in TASKS:
        assert close(ours["results"][task], theirs["results"][task]), task
        for mine, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            same(mine["resps"], other["resps"])
    assert any(sample["resps"][0][0] for sample in ours["samples"]["local_generate"])
    config = ours["config"]
    assert (config["max_length"], config["step"], config["generated_requests"], config["cut_requests"]) == (CONTEXT, 0, 5, 3)
    # 14 answers, 5 last words and at least one window of each text.
    assert config["requests"] >= config["distinct_requests"] > 23


@LLAMA
def test_bos_is_no_text_unless_asked_for(folders, tasks):
    theirs, workdir, _ = folders
    ours, harness = (evaluated(*model, tasks, ["local_rolling"])["results"]["local_rolling"] for model in (
        ("lm", {"workdir": str(workdir)}),
        ("hf", {"pretrained": str(theirs), "device": "cpu", "dtype": "float32", "add_bos_token": False})))
    assert close(ours, harness)


@LLAMA
def test_our_suite_gives_the_harness_s_metrics(folders, tasks, tmp_path):
    _, workdir, _ = folders
    subject = suite.open_subject(workdir)
    (tmp_path / "choices.jsonl").write_text("".join(
        json.dumps({"question": item["question"], "choices": item["options"], "gold": item["gold"]}) + "\n" for item in CHOICES))
    entries = suite.parse(f"choice:{tmp_path}/choices.jsonl,last_word:{tasks}/texts.jsonl,word_perplexity:jsonl:{tasks}/texts.jsonl")
    choice, last, words = suite.measure(subject, entries).values()
    found, asked = lm_eval.measure(subject, ["local_choice", "local_last_word", "local_rolling"], str(tasks))
    harness = found["lm_eval:local_choice"]
    for ours, name in (("accuracy", "acc"), ("accuracy_by_character", "acc_norm"), ("accuracy_by_byte", "acc_bytes")):
        assert (choice[ours], choice[f"{ours}_stderr"]) == pytest.approx((harness[f"{name},none"], harness[f"{name}_stderr,none"]))
    assert (harness["items"], harness["shots"]) == (5, 0) and not any("requests" in metrics for metrics in found.values())
    assert asked["requests"] == choice["requests"] + last["requests"] + words["windows"] - 1  # one is of an end, which fits no window
    harness = found["lm_eval:local_last_word"]
    assert (last["accuracy"], last["perplexity"]) == pytest.approx((harness["acc,none"], harness["perplexity,none"]), rel=1e-5)
    assert words["word_perplexity"] == pytest.approx(found["lm_eval:local_rolling"]["word_perplexity,none"], rel=1e-5)


@LLAMA
def test_limit_and_bad_arguments(folders, tasks):
    subject = suite.open_subject(folders[1], limit=2)
    assert lm_eval.measure(subject, ["local_last_word"], str(tasks))[0]["lm_eval:local_last_word"]["items"] == 2
    with pytest.raises(ConfigError, match="is not a folder of tasks"):
        lm_eval.measure(subject, ["local_choice"], str(tasks / "no"))
    with pytest.raises(ConfigError, match="no run"):
        lm_eval.model_class()()
    for argument, message in (("dtype=float32", "model_args has dtype, and only workdir, step, max_length, stride, seed, score_bos"),
                              ("step=latest", "model_args has step=latest: give a whole number")):
        with pytest.raises(ConfigError, match=message):
            evaluated("lm", f"workdir={folders[1]},{argument}", tasks, ["local_choice"])


@LLAMA
def test_the_script_says_once_what_the_tasks_together_asked(folders, tasks, capsys):
    found = importlib.util.spec_from_file_location("eval_script", pathlib.Path(__file__).parents[2] / "scripts/eval.py")
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    script.main([f"--workdir={folders[1]}", "--suite=lm_eval:local_choice,local_last_word", f"--include={tasks}"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result) == ["step", "suites", "lm_eval"] and list(result["suites"]) == ["lm_eval:local_choice", "lm_eval:local_last_word"]
    assert (result["lm_eval"]["requests"], result["lm_eval"]["max_length"]) == (14 + 5, CONTEXT)
    assert "requests" not in result["suites"]["lm_eval:local_choice"]


@LLAMA
def test_conversations_are_those_of_the_tokenizer_s_template(folders, tasks):
    import transformers

    model = lm_eval.model_class()(str(folders[1]))
    other = transformers.AutoTokenizer.from_pretrained(folders[0])
    said = [{"role": "system", "content": "be short"}, {"role": "user", "content": "Who sang?"}]
    assert model.apply_chat_template(said) == other.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    begun = [*said, {"role": "assistant", "content": "A small"}]
    assert model.apply_chat_template(begun, False) == other.apply_chat_template(begun, tokenize=False, continue_final_message=True)
    assert model.tok_encode(model.apply_chat_template(said)) == other.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    assert (model.chat_template(True), model.chat_template(False)) == (CHAT, "")
    names = ["local_choice", "local_generate"]
    ours, theirs = (evaluated(*asked, tasks, names, apply_chat_template=True) for asked in (
        ("lm", {"workdir": str(folders[1])}), ("hf", {"pretrained": str(folders[0]), "device": "cpu", "dtype": "float32"})))
    for name in names:
        assert close(ours["results"][name], theirs["results"][name])
        for mine, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            same(mine["resps"], other["resps"])


@LLAMA
def test_answers_are_kept_in_the_harness_s_cache(folders, tasks, tmp_path):
    arguments = {"workdir": str(folders[1])}
    names = ["local_last_word", "local_rolling", "local_generate"]
    first, again = (evaluated("lm", arguments, tasks, names, use_cache=str(tmp_path / "kept")) for _ in range(2))
    for task in names:
        assert close(again["results"][task], first["results"][task], 1e-12)
    assert (first["config"]["requests"] > 0, again["config"]["requests"], again["config"]["generated_requests"]) == (True, 0, 0)


@LLAMA
def test_sampling_and_its_refusals(folders):
    subject = suite.open_subject(folders[1])
    prompted = lm_eval.Prompted(subject, subject.context)
    prompts = [lm_eval.encode(subject.run.tokenizer, text) for text in SENTENCES]
    texts = [prompted(prompts, [], 12, Sampling(1.5)) for _ in range(2)]
    assert texts[0] != texts[1]
    assert lm_eval.sampling_of({"do_sample": True, "temperature": 0.5, "top_k": 3}) == Sampling(0.5, 3)
    assert lm_eval.sampling_of({"do_sample": False, "temperature": 0.0, "top_p": 0.5}) == Sampling(0.0)
    with pytest.raises(ConfigError, match="num_beams"):
        lm_eval.sampling_of({"do_sample": False, "num_beams": 4})
    with pytest.raises(ConfigError, match="lower max_gen_toks"):
        prompted(prompts, [], CONTEXT, Sampling(0.0))


@pytest.mark.slow  # the harness reads all of its own tasks
@LLAMA
def test_the_harness_s_command_runs_with_our_model(folders, tasks, tmp_path):
    command = [sys.executable, "-m", "lm.interop.lm_eval", "--model", "lm", "--model_args", f"workdir={folders[1]}", "--tasks",
               "local_choice,local_generate", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (file,) = (tmp_path / "out").rglob("results*.json")
    written = json.loads(file.read_text())
    expected, asked = lm_eval.measure(suite.open_subject(folders[1]), ["local_choice"], str(tasks))
    assert written["results"]["local_choice"]["acc_norm,none"] == pytest.approx(expected["lm_eval:local_choice"]["acc_norm,none"])
    assert written["config"]["tokens_scored"] == asked["tokens_scored"]
    with pytest.raises(ConfigError, match="no task nowhere"):
        lm_eval.measure(suite.open_subject(folders[1]), ["nowhere"], str(tasks))
