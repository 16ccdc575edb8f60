"""The weights of g2p-en in our encoder-decoder against the equations of the package in plain NumPy."""

import functools

import numpy as np
import pytest

from lm.errors import ConfigError, DataError
from lm.interop import g2p

TEXT = """
a able about above accept across act add afraid after again age agree air all allow almost alone along always amount ancient anger animal
answer appear apple area arm army arrive art ask attack aunt autumn baby back bad bag ball bank base basket bath bean bear beautiful bed
bedroom beer behave before begin bell below besides best better between big bird birth birthday bit bite black bleed block blood blow blue
board boat body bone book border born borrow both bottle bottom bowl box boy branch brave bread break breakfast breathe bridge bright bring
brother brown brush build burn business bus busy cake call candle cap car card care careful careless carry case castle cat catch central
century certain chair chance change chase cheap cheese chicken child children chocolate choice choose circle city class clever clean clear
climb clock cloth clothes cloud cloudy coffee coat coin cold collect colour comb common compare complete computer
activationist kyubyong perplexity tokenizer backpropagate quizzaciously rhythm psychopomp onomatopoeia xylography mnemonicks
antidisestablishmentarianism zzz qwrtp by to information
daily damage dance danger daughter decide delicious depend destroy dictionary different difficult dinner direction discover dish divide
doctor dollar double doubt dream drink drive duck dust eager early earth easy education eight either electric elephant empty enemy enjoy
"""
WORDS = TEXT.split()


@functools.cache
def weights():
    try:
        path = g2p.checkpoint()
    except ConfigError:
        pytest.skip("g2p-en is not installed: a published model is NOT checked (pip install --no-deps g2p-en)")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(x, h, w_ih, w_hh, b_ih, b_hh):
    """Cho et al. (2014) with the reset gate after the product; gates reset, update, new."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(w_ih @ x + b_ih, 3), np.split(w_hh @ h + b_hh, 3)
    z = sigmoid(x_z + h_z)
    return (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h


def transcribed(word):
    """Greedy phonemes of a word, at most 20, and the least distance of a chosen logit to the next one."""
    w = weights()
    encoder, decoder = ([w[f"{side}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh")] for side in ("enc", "dec"))
    h = np.zeros(256)
    for letter in [*(g2p.GRAPHEMES.index(letter) for letter in word), g2p.GRAPHEMES.index("</s>")]:
        h = gru(w["enc_emb"][letter], h, *encoder)
    phonemes, last, margin = [], g2p.PHONEMES.index("<s>"), np.inf
    while len(phonemes) < 20:
        h = gru(w["dec_emb"][last], h, *decoder)
        logits = w["fc_w"] @ h + w["fc_b"]
        last, margin = int(np.argmax(logits)), min(margin, float(np.diff(np.sort(logits)[-2:])[0]))
        if g2p.PHONEMES[last] == "</s>":
            break
        phonemes.append(g2p.PHONEMES[last])
    return " ".join(phonemes), margin


def test_words_are_transcribed_as_the_package_does():
    assert len(WORDS) > 190 and {len(word) for word in WORDS} > set(range(1, 13))
    expected, margins = zip(*(transcribed(word) for word in WORDS), strict=True)
    assert min(margins) > 1e-4  # no choice hangs on rounding
    assert g2p.transcriber()(WORDS) == list(expected)


def test_pronunciations_are_the_readmes():
    weights()
    transcribe = g2p.transcriber()
    assert transcribe(["activationist"]) == ["AE2 K T IH0 V EY1 SH AH0 N IH0 S T"]
    assert transcribe(["popular", "cats"], beams=4) == ["P AA1 P Y AH0 L ER0", "K AE1 T S"]


def test_symbols_are_as_many_as_the_tables_have_rows():
    assert (len(g2p.GRAPHEMES), len(g2p.PHONEMES)) == (len(weights()["enc_emb"]), len(weights()["dec_emb"]))
    assert g2p.PHONEMES[4:8] == ("AA0", "AA1", "AA2", "AE0") and g2p.PHONEMES[-2:] == ("Z", "ZH")


def test_symbols_are_a_tokenizer():
    phonemes, letters = g2p.Symbols(g2p.PHONEMES, " "), g2p.Symbols(g2p.GRAPHEMES, "")
    assert phonemes.decode(phonemes.encode("K AE1 T")) == "K AE1 T"
    assert phonemes.decode([phonemes.bos_id, *phonemes.encode("K AE1"), phonemes.eos_id]) == "K AE1"
    assert (phonemes.pad_id, phonemes.bos_id, phonemes.eos_id) == (0, 2, 3)
    assert letters.encode("ca7").tolist() == [5, 3, 1]  # what is no letter is <unk>
    assert letters.bos_id == letters.eos_id == 2
    assert phonemes.fingerprint() != letters.fingerprint()


def test_an_extra_unit_carries_the_output_bias():
    """A published file is not needed: tiny random weights of the same form."""
    rng, width = np.random.default_rng(0), 4
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    layer = g2p._layer(draw(12, 3), draw(12, width), draw(12), draw(12))
    assert layer["input"].shape == (3, 15) and layer["recurrent"].shape == (5, 15)
    z, n = layer["bias"].reshape(3, 5)[1:, 4]
    assert np.float32(sigmoid(np.float64(z))) == 0.0 and np.float32(np.tanh(n)) == 1.0


@pytest.mark.parametrize("content", ["nothing", "text", "other arrays"])
def test_another_file_is_an_error(tmp_path, content):
    path = tmp_path / "checkpoint20.npz"
    if content == "text":
        path.write_text("these are no weights")
    elif content == "other arrays":
        np.savez(path, enc_emb=np.zeros((29, 4)))
    with pytest.raises(DataError, match="does not have the weights of g2p-en"):
        g2p.load(path)


def test_a_package_that_is_not_there_is_an_error(monkeypatch):
    def missing(name):
        raise g2p.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(g2p.importlib.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match="pip install --no-deps g2p-en"):
        g2p.checkpoint()
