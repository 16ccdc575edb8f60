"""The weights of g2p-en (Park and Kim 2019), English words to ARPAbet phonemes, as a recurrent encoder-decoder of ours.

The PyPI package has a GRU encoder and a GRU decoder without attention in a NumPy file. Only that file is read: importing the package
would download what its other parts need.
"""

import importlib.metadata
import pathlib

import numpy as np

from lm.data.files import digest
from lm.data.tokenizers import Tokenizer
from lm.errors import ConfigError, DataError
from lm.generate.translate import Translator
from lm.models.seq2seq import Seq2Seq, Seq2SeqModel, Spec

VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (*"BDFGKLMNPRSTVWYZ", "CH", "DH", "HH", "JH", "NG", "SH", "TH", "ZH")
GRAPHEMES = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
# In the order of the alphabet; a vowel has its stress, and UW is there without one too.
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted((*CONSONANTS, *(f"{vowel}{stress}" for vowel in VOWELS for stress in "012"), "UW")))
MOST_PHONEMES = 20  # of a word, as the package has it
ALWAYS = 200.0  # drives a sigmoid or a tanh to its end in float32


class Symbols(Tokenizer):
    """Tokens that are written with a separator between them; what is no symbol becomes <unk>."""

    kind = "symbols"

    def __init__(self, symbols: tuple[str, ...], separator: str):
        self.symbols, self.separator, self.vocab_size = symbols, separator, len(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}
        self.pad_id, self.eos_id = self._ids["<pad>"], self._ids["</s>"]
        self.bos_id = self._ids.get("<s>", self.eos_id)

    def encode(self, text: str) -> np.ndarray:
        """int32 ids [n]; an empty separator takes the text letter by letter."""
        parts = text.split(self.separator) if self.separator else text
        return np.array([self._ids.get(part, self._ids["<unk>"]) for part in parts], np.int32)

    def decode_bytes(self, ids) -> bytes:
        """The symbols of `ids` [n] with the separator between them, special ones dropped."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        return self.separator.join(self.symbols[i] for i in np.asarray(ids).tolist() if i not in special).encode()

    def fingerprint(self) -> str:
        """Hex hash of the symbols."""
        return digest(b"symbols", self.separator.encode(), "\n".join(self.symbols).encode())


def checkpoint() -> pathlib.Path:
    """The weights of the installed package. ConfigError where it is not installed."""
    try:
        distribution = importlib.metadata.distribution("g2p-en")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError("g2p-en is not installed: pip install --no-deps g2p-en") from error
    return pathlib.Path(str(distribution.locate_file("g2p_en/checkpoint20.npz")))


def load(path) -> tuple[Seq2SeqModel, dict]:
    """(model, parameters) of a checkpoint20.npz. DataError when it is not one."""
    try:
        with np.load(path) as file:
            arrays = {name: np.asarray(file[name], np.float32) for name in file.files}
        source, target = arrays["enc_emb"], arrays["dec_emb"]
        width = arrays["enc_w_hh"].shape[1] + 1
        encoder, decoder = ({"embedding": {"embedding": arrays[f"{side}_emb"]},
                             "layer_0": _layer(*(arrays[f"{side}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh")))}
                            for side in ("enc", "dec"))
        kernel = np.concatenate([arrays["fc_w"], arrays["fc_b"][:, None]], axis=1)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path} does not have the weights of g2p-en: give the checkpoint20.npz of the package") from error
    spec = Spec(cell="gru", attention="none", vocab_size=len(target), source_vocab=len(source), layers=1, width=width,
                embedding_width=source.shape[1], bidirectional=False, reverse_source=False, residual=False, tie_embeddings=False,
                dropout=0.0, dtype="float32", unroll=1, remat="none")
    params = {"encoder": encoder, "decoder": decoder, "unembedding": {"kernel": kernel}}
    return Seq2SeqModel(Seq2Seq(spec), len(target), None), params


def _layer(inputs, recurrent, input_bias, recurrent_bias):
    """Our GRU's parameters from PyTorch's (gates reset, update, new along the rows), and a unit more whose state is always 1.

    Our output matrix has no bias: the one of g2p-en is the weight of that unit.
    """
    width = recurrent.shape[1]
    by_gate = inputs.T.reshape(-1, 3, width), recurrent.T.reshape(width, 3, width)
    inputs, recurrent = (np.pad(matrix, ((0, 0), (0, 0), (0, 1))) for matrix in by_gate)
    recurrent = np.pad(recurrent, ((0, 1), (0, 0), (0, 0)))
    bias, of_new = input_bias.reshape(3, width).copy(), recurrent_bias.reshape(3, width)
    # Both biases add up but where the reset gate is between them.
    bias[:2] += of_new[:2]
    always_new = np.array([0.0, -ALWAYS, ALWAYS], np.float32)  # the update gate is 0 and the new state 1
    bias = np.concatenate([bias, always_new[:, None]], axis=1)
    return {"input": inputs.reshape(len(inputs), -1), "recurrent": recurrent.reshape(width + 1, -1), "bias": bias.reshape(-1),
            "recurrent_bias": np.append(of_new[2], np.float32(0.0))}


def transcriber(path=None, rows: int = 32) -> "Transcriber":
    """What transcribes words with the weights at `path`, by default those of the installed package."""
    return Transcriber(*load(path or checkpoint()), rows)


class Transcriber:
    """Lower-case words to phonemes, such as "cat" to "K AE1 T"."""

    def __init__(self, model: Seq2SeqModel, params: dict, rows: int = 32):
        self._translate = Translator(model, params, Symbols(PHONEMES, " "), Symbols(GRAPHEMES, ""), rows)

    def __call__(self, words: list[str], beams: int = 1) -> list[str]:
        """The phonemes of each word, with spaces between them; one beam is what the package does."""
        return [found.text for found in self._translate(words, beams=beams, alpha=0.0, max_tokens=MOST_PHONEMES)]
