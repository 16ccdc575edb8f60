"""Stretched rotary wavelengths against closed forms, and against the functions of the transformers library."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lm.layers.rope import Rope, document_lengths, plain

WIDTH, BASE, ORIGINAL = 16, 10000.0, 64
SHORT, LONG = tuple(1 + 0.1 * i for i in range(WIDTH // 2)), tuple(2 + 1.5 * i for i in range(WIDTH // 2))
# Both sides of the original context, and late positions.
LENGTHS = (7, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL, 4096)
SCALINGS = {
    "linear": ({"factor": 4.0}, {"factor": 4.0}),
    "dynamic": ({"factor": 3.0, "original_context": ORIGINAL}, {"factor": 3.0}),
    "llama3": ({"factor": 8.0, "original_context": ORIGINAL, "low_frequency": 1.0, "high_frequency": 4.0},
               {"factor": 8.0, "original_max_position_embeddings": ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "llama3 other ends": ({"factor": 2.5, "original_context": ORIGINAL, "low_frequency": 0.3, "high_frequency": 7.0},
                          {"factor": 2.5, "original_max_position_embeddings": ORIGINAL, "low_freq_factor": 0.3, "high_freq_factor": 7.0}),
    "yarn": ({"factor": 8.0, "original_context": ORIGINAL}, {"factor": 8.0, "original_max_position_embeddings": ORIGINAL}),
    "yarn not truncated": (
        {"factor": 4.0, "original_context": ORIGINAL, "truncate": False, "beta_fast": 8.0, "beta_slow": 0.5, "attention_factor": 1.3},
        {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "truncate": False, "beta_fast": 8.0, "beta_slow": 0.5,
         "attention_factor": 1.3}),
    "yarn of DeepSeek": ({"factor": 4.0, "original_context": ORIGINAL, "mscale": 0.7, "mscale_all": 1.4},
                         {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "mscale": 0.7, "mscale_all_dim": 1.4}),
    "longrope": ({"factor": 32.0, "original_context": ORIGINAL, "short_factors": SHORT, "long_factors": LONG},
                 {"factor": 32.0, "original_max_position_embeddings": ORIGINAL, "short_factor": list(SHORT), "long_factor": list(LONG)}),
    "longrope given": (
        {"original_context": ORIGINAL, "short_factors": SHORT, "long_factors": LONG, "attention_factor": 1.25},
        {"factor": 1.0, "original_max_position_embeddings": ORIGINAL, "short_factor": list(SHORT), "long_factor": list(LONG),
         "attention_factor": 1.25}),
}


def made(name, width=WIDTH, base=BASE):
    return Rope(width, base, name.split()[0], **SCALINGS[name][0])


def cos_sin(rope, length):
    """(cos, sin), each [length, width / 2], of a document of so many tokens."""
    positions = np.arange(length)[None]
    cos, sin = rope.angles(jnp.asarray(positions), jnp.full((1, 1), length))
    return np.asarray(cos)[0, :, 0], np.asarray(sin)[0, :, 0]


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_are_those_of_the_transformers_library(name, share):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity: scripts/test.sh --parity")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind, theirs = name.split()[0], dict(SCALINGS[name][1])
    for key in ("short_factor", "long_factor"):
        if key in theirs:
            theirs[key] = theirs[key][: int(WIDTH * share) // 2]
    config = transformers.LlamaConfig(hidden_size=2 * WIDTH, num_attention_heads=2, max_position_embeddings=ORIGINAL,
                                      rope_parameters={"rope_type": kind, "rope_theta": BASE, "partial_rotary_factor": share, **theirs})
    ours = made(name, int(WIDTH * share))
    ours = ours._replace(short_factors=ours.short_factors[: ours.width // 2], long_factors=ours.long_factors[: ours.width // 2])
    for length in LENGTHS:
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
        angles = np.arange(length)[:, None] * frequencies.double().numpy()
        # float32 rounds an angle of 4,095 radians by up to 1.2e-4, and a frequency by some 1e-7 of it.
        tolerance = 1e-6 + 4e-7 * length
        for got, expected in zip(cos_sin(ours, length), (np.cos(angles) * scale, np.sin(angles) * scale), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def frequencies(rope, length=100):
    """[width / 2] by the angles at position 1, where the sine of each is its own."""
    cos, sin = cos_sin(rope, length)
    return np.arctan2(sin[1], cos[1])


def test_linear_divides_positions():
    cos, sin = cos_sin(Rope(WIDTH, BASE, "linear", 4.0), 100)
    plain_cos, plain_sin = cos_sin(Rope(WIDTH, BASE), 25)
    np.testing.assert_allclose(cos[::4], plain_cos, atol=1e-5)
    np.testing.assert_allclose(sin[::4], plain_sin, atol=1e-5)


def test_llama3_leaves_short_wavelengths_and_stretches_long_ones():
    rope = Rope(64, BASE, "llama3", 8.0, 8192)
    wavelengths, ratio = 2 * math.pi / plain(rope), frequencies(rope) / plain(rope)
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    assert short.sum() > 5 and long.sum() > 5 and (~short & ~long).sum() > 2
    np.testing.assert_allclose(ratio[short], 1, rtol=1e-5)
    np.testing.assert_allclose(ratio[long], 1 / 8, rtol=1e-5)
    share = (8192 / wavelengths - 1) / (4 - 1)
    np.testing.assert_allclose(ratio[~short & ~long], (share + (1 - share) / 8)[~short & ~long], rtol=1e-5)


def test_yarn_has_its_ends_and_grows_by_its_logarithm():
    rope = Rope(64, BASE, "yarn", 16.0, 4096)
    cos, sin = cos_sin(rope, 2)
    scale = 0.1 * math.log(16) + 1
    np.testing.assert_allclose(np.hypot(cos, sin), scale, rtol=1e-6)
    ratio, turns = frequencies(rope) / plain(rope), 4096 * plain(rope) / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 1.4 * 32], 1, rtol=1e-5)  # a unit more, as ends are rounded outwards
    np.testing.assert_allclose(ratio[turns < 1 / 1.4], 1 / 16, rtol=1e-5)
    middle = ratio[(turns < 32) & (turns > 1)]
    assert len(middle) > 5 and (np.diff(middle) < 0).all()


def test_dynamic_is_plain_up_to_the_original_context_and_then_grows_the_base():
    rope = Rope(WIDTH, BASE, "dynamic", 2.0, ORIGINAL)
    for length in (2, ORIGINAL):
        np.testing.assert_allclose(frequencies(rope, length), plain(rope), rtol=1e-5)
    longest = frequencies(rope, 4 * ORIGINAL)[-1] / plain(rope)[-1]
    assert longest == pytest.approx(1 / (2 * 4 - 1), rel=1e-4)  # the last wavelength of all is stretched by the whole factor
    assert frequencies(rope, 4 * ORIGINAL)[0] == pytest.approx(1)


def test_longrope_has_other_factors_and_one_scale():
    rope = made("longrope")
    for length, factors in ((ORIGINAL, SHORT), (ORIGINAL + 1, LONG)):
        np.testing.assert_allclose(frequencies(rope, length), plain(rope) / np.array(factors), rtol=1e-5)
        np.testing.assert_allclose(np.hypot(*cos_sin(rope, length)), math.sqrt(1 + math.log(32) / math.log(ORIGINAL)), rtol=1e-6)


def test_the_length_of_a_document_is_its_own_in_a_packed_row():
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3]])
    positions = np.array([[0, 1, 2, 0, 1, 0, 1], [4, 5, 6, 7, 8, 9, 10]])  # the second is the rest of a longer one
    got = document_lengths(jnp.asarray(positions), jnp.asarray(segments))
    np.testing.assert_array_equal(got, [[3, 3, 3, 2, 2, 2, 2], [11] * 7])
