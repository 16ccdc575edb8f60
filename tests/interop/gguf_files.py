"""Small GGUF files for tests, written as llama.cpp's converter writes them."""

import gguf
import numpy as np

HEADS, KEYS, WIDTH, HIDDEN, LAYERS, CONTEXT, THETA = 4, 2, 32, 64, 2, 64, 5000.0
ALPHABET = [chr(c) for c in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
# The bytes, merges that join digits, letters and a space with a letter, and two control tokens.
MERGES = ["1 2", "12 3", "123 4", "a b", "\u0120 a", "\u0120 ab"]
SPECIALS = ["<|end|>", "<|start|>"]
TOKENS = [*SPECIALS, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]


def layer_shapes(architecture):
    """{name in a layer: shape} of one of the architectures."""
    head = WIDTH // HEADS
    norms, fused = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,)}, (WIDTH + 2 * KEYS * head, WIDTH)
    attention = {"attn_q.weight": (WIDTH, WIDTH), "attn_k.weight": (KEYS * head, WIDTH), "attn_v.weight": (KEYS * head, WIDTH),
                 "attn_output.weight": (WIDTH, WIDTH)}
    feed_forward = {"ffn_gate.weight": (HIDDEN, WIDTH), "ffn_up.weight": (HIDDEN, WIDTH), "ffn_down.weight": (WIDTH, HIDDEN)}
    biases = {f"attn_{part}.bias": (rows,) for part, rows in (("q", WIDTH), ("k", KEYS * head), ("v", KEYS * head))}
    if architecture == "gpt2":
        dense = {"attn_qkv": (3 * WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
        return norms | {"attn_norm.bias": (WIDTH,), "ffn_norm.bias": (WIDTH,), **{f"{name}.weight": shape for name, shape in dense.items()},
                        **{f"{name}.bias": shape[:1] for name, shape in dense.items()}}
    if architecture == "phi3":
        return norms | {"attn_qkv.weight": fused, "attn_output.weight": (WIDTH, WIDTH), "ffn_up.weight": (2 * HIDDEN, WIDTH),
                        "ffn_down.weight": (WIDTH, HIDDEN)}
    if architecture == "olmo2":
        after = {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
        return after | attention | feed_forward | {"attn_q_norm.weight": (WIDTH,), "attn_k_norm.weight": (KEYS * head,)}
    more = {"qwen2": biases, "qwen3": {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}}
    return norms | attention | feed_forward | more.get(architecture, {})


def random_tensors(seed=0, architecture="llama", untied=False):
    """{llama.cpp's name: float32 array} of a model."""
    draw = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {"output.weight": (len(TOKENS), WIDTH)} if untied else {}
    shapes |= {"output_norm.bias": (WIDTH,), "position_embd.weight": (CONTEXT, WIDTH)} if architecture == "gpt2" else {}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer_shapes(architecture).items()}
    return {name: (draw.normal(size=shape) * 0.5).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path, tensors=None, architecture="llama", kind="F32", extra=(), left_out=(), pre="smollm", theta=THETA):
    """A GGUF file; matrices are quantised to `kind`. `extra` are (method of GGUFWriter, argument, ...), `left_out` names of tensors."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(KEYS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(theta)
    if architecture == "phi3":
        writer.add_rope_dimension_count(WIDTH // HEADS)
        writer.add_rope_scaling_orig_ctx_len(CONTEXT)
    if pre:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(TOKENS)
        writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(0)
        writer.add_chat_template("{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}")
    for method, *arguments in extra:
        getattr(writer, method)(*arguments)
    for name, value in (tensors or random_tensors(architecture=architecture)).items():
        if name in left_out:
            continue
        quantise = kind != "F32" and value.ndim == 2
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(value, number) if quantise else value, raw_dtype=number if quantise else None)
    return _finish(writer, path)


def write_raw(path, tensors):
    """A GGUF file of tensors {name: (bytes or numbers, ggml's type)} and nothing else."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    return _finish(writer, path)


def _finish(writer, path):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
