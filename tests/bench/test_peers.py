"""Peers are the models that ours are: as many parameters, causal, and one GPT-2 whoever wrote it. Those of PyTorch need the extra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models
from lm.bench.peers import flax as plain
from lm.bench.shapes import SHAPES, config_of, shape_of

CHECKED = ("tiny", "S", "L", "LSTMtiny", "LSTM1024")


def size(tree):
    """Entries of all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def ours(shape):
    """Parameters of our model, as shapes."""
    return jax.eval_shape(models.build(config_of(shape).model, shape.vocab_size, shape.context).init, jax.random.key(0))


def flax_model(shape):
    """The plain Flax model of a shape."""
    return (plain.LSTM if shape.family == "lstm" else plain.GPT)(shape)


@pytest.mark.parametrize("name", CHECKED)
def test_plain_flax_has_as_many_parameters_as_ours(name):
    shape = SHAPES[name]
    theirs = jax.eval_shape(flax_model(shape).init, jax.random.key(0), jnp.zeros((1, shape.context), jnp.int32))
    assert size(theirs) == size(ours(shape))


def test_plain_flax_sees_the_past_alone():
    shape = SHAPES["tiny"]._replace(context=6, layers=1)
    tokens = jnp.arange(6)[None]
    model = flax_model(shape)
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    before, after = (jax.jit(model.apply)(params, some) for some in (tokens, tokens.at[0, 3].set(9)))
    changed = jnp.any(jnp.abs(before - after) > 1e-6, axis=-1)[0]
    assert changed.tolist() == [False] * 3 + [True] * 3


def test_plain_flax_learns_its_batch_and_says_what_it_measured():
    side = plain.Training(list(SHAPES["LSTMtiny"]))
    first = side.first()
    assert first["loss"] == pytest.approx(np.log(256), rel=0.01) and first["parameters"] == size(ours(SHAPES["LSTMtiny"]))
    losses = side.steps(8, losses=True)
    assert losses[-1] < losses[0] < first["loss"] and all(0 < seconds < first["seconds"] for seconds in side.steps(2))
    assert side.memory() > 10**8


@pytest.fixture
def torch():
    """PyTorch, where the extra `bench` is installed."""
    return pytest.importorskip("torch")


@pytest.mark.parametrize(("name", "family"), [("tiny", "gpt2"), ("S", "gpt2"), ("LSTMtiny", "lstm"), ("tiny", "llama"), ("S", "llama")])
def test_pytorch_and_transformers_have_as_many_parameters_as_ours(torch, name, family):
    from lm.bench.peers import hf, pytorch

    shape = shape_of(name, family=family)
    for module in (pytorch, hf):
        if family == ("llama" if module is pytorch else "lstm"):
            continue
        side = module.Training(list(shape), compiled=False)
        count = sum(parameter.numel() for parameter in side.build(shape).parameters())
        assert count - side.info["extra_parameters"] == size(ours(shape))


def weights_of(torch, params, shape):
    """Parameters of the plain Flax GPT under the names of our PyTorch GPT."""
    def tensor(array):
        return torch.from_numpy(np.array(array))

    def layer(name, kernel, bias):
        return {f"{name}.weight": tensor(kernel).T, f"{name}.bias": tensor(bias)}

    def norm(name, found):
        return {f"{name}.weight": tensor(found["scale"]), f"{name}.bias": tensor(found["bias"])}

    weights = {"tokens.weight": tensor(params["Embed_0"]["embedding"]), "positions.weight": tensor(params["Embed_1"]["embedding"]),
               **norm("norm", params["LayerNorm_0"])}
    width = shape.width
    for i in range(shape.layers):
        block, name = params[f"Block_{i}"], f"blocks.{i}"
        attention = block["MultiHeadDotProductAttention_0"]
        parts = [attention[part] for part in ("query", "key", "value")]
        kernel = np.concatenate([part["kernel"].reshape(width, width) for part in parts], axis=1)
        weights |= {**layer(f"{name}.qkv", kernel, np.concatenate([part["bias"].ravel() for part in parts])),
                    **layer(f"{name}.output", attention["out"]["kernel"].reshape(width, width), attention["out"]["bias"]),
                    **norm(f"{name}.norm1", block["LayerNorm_0"]), **norm(f"{name}.norm2", block["LayerNorm_1"])}
        for there, here in (("up", "Dense_1"), ("down", "Dense_0")):
            weights |= layer(f"{name}.{there}", **block[here])
    return weights


def test_one_gpt_2_whoever_wrote_it(torch):
    from lm.bench.peers import hf, pytorch

    shape = shape_of("tiny", width=128)  # two heads
    tokens = np.random.default_rng(0).integers(0, shape.vocab_size, (2, 16))
    model = plain.GPT(shape)
    params = jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), model.init(jax.random.key(1), tokens))
    logits = np.asarray(model.apply(params, tokens))

    gpt, reference = pytorch.GPT(shape), hf.build(shape)
    gpt.load_state_dict(weights_of(torch, params["params"], shape))
    names = {"tokens": "wte", "positions": "wpe", "norm": "ln_f", "qkv": "attn.c_attn", "output": "attn.c_proj", "norm1": "ln_1",
             "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    state = {}
    for name, value in gpt.state_dict().items():
        *place, part, kind = name.split(".")
        linear = kind == "weight" and value.ndim == 2 and place  # transformers has its GPT-2's matrices the other way round
        state[".".join(["transformer", *(["h", place[1]] if place else []), names[part], kind])] = value.T if linear else value
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert (missing, unexpected) in (([], []), (["lm_head.weight"], []))
    for module in (*gpt.modules(), *reference.modules()):
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6  # Flax's; PyTorch and GPT-2 have 1e-5
    with torch.no_grad():
        rows = torch.from_numpy(tokens)
        np.testing.assert_allclose(gpt(rows).numpy(), logits, atol=1e-4)
        np.testing.assert_allclose(hf.Logits(reference)(rows).numpy(), gpt(rows).numpy(), atol=1e-4)
