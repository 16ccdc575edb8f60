"""FLOPs by architecture against XLA's own count, and against counting by hand."""

import jax
import numpy as np
import pytest

from lm import config, models
from lm.layers.attention import causal_mask
from lm.metrics import flops
from lm.models import logits_of
from lm.objectives.causal import Causal

LENGTH, VOCAB = 16, 300


def build(name, **settings):
    section = config.default().model
    section.update({"layers": 2, "width": 128} | settings, name=name)
    return models.build(section, VOCAB, LENGTH)


@pytest.mark.parametrize(("name", "settings"), [
    ("transformer", {"scan_layers": False}),
    ("transformer", {"scan_layers": False, "activation": "swiglu", "kv_heads": 1, "head_width": 48, "tie_embeddings": False}),
    ("rnn", {"unroll": LENGTH, "width": 256}),
    ("lstm", {"unroll": LENGTH, "embedding_width": 64, "residual": True}),
    ("gru", {"unroll": LENGTH, "tie_embeddings": False, "layers": 3}),
])
def test_forward_flops_are_the_compilers(name, settings):
    """Unrolled, since XLA counts the body of a loop once."""
    model = build(name, **settings)
    params = jax.eval_shape(model.init, jax.random.key(0))
    row = jax.ShapeDtypeStruct((1, LENGTH), np.int32)

    def logits(params, batch):
        return logits_of(model.apply(params, batch), model.unembedding(params))

    counted = jax.jit(logits).lower(params, dict.fromkeys(("tokens", "segments", "positions"), row)).cost_analysis()["flops"]
    # XLA adds element-wise work, which is of the order of one over the width: never less, and at most 3 % here.
    assert 1.0 <= counted / (LENGTH * model.forward_flops(LENGTH, causal=False)) < 1.03


def test_causal_attention_counts_the_keys_that_are_seen():
    model = build("transformer", kv_heads=2, head_width=24)
    seen = np.mean(np.sum(causal_mask(np.ones((1, LENGTH), int), 0, LENGTH), axis=-1))
    assert seen == (LENGTH + 1) / 2
    per_key = 2 * 2 * 4 * 24  # score and mix, two FLOPs per multiply-add, four heads
    dense, causal = (model.forward_flops(LENGTH, causal=c) for c in (False, True))
    assert dense - causal == pytest.approx(2 * per_key * (LENGTH - seen))


def test_training_costs_three_forward_passes():
    for name in ("transformer", "lstm"):
        model = build(name)
        assert Causal(None, None, 10, 0).train_flops(model) == 3 * model.forward_flops(10)


class Device:
    platform = "gpu"

    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(("kind", "peak"), [
    ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12),
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA GH200 480GB", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12),
])
def test_known_devices_have_their_data_sheets_peak(kind, peak):
    assert flops.peak_flops(Device(kind)) == (peak, "known")


@pytest.mark.parametrize("kind", ["NVIDIA L40S", "cpu", "TPU v9"])
def test_unknown_devices_are_measured(kind, monkeypatch):
    monkeypatch.setattr(flops, "measured_peak", lambda device: 123.0)
    assert flops.peak_flops(Device(kind)) == (123.0, "measured")


def test_a_measured_peak_is_shared_by_simulated_devices(monkeypatch):
    monkeypatch.setattr(flops, "measured_peak", lambda device: 800.0)
    assert flops.peak_flops() == (800.0 / jax.local_device_count(), "measured")


def test_measured_peak_is_a_plausible_speed():
    assert 1e8 < flops.measured_peak(jax.devices()[0], size=128, repeats=2) < 1e14
