"""ARPA files: what is written comes back, KenLM reads the same probabilities from it, and damage is named by its line."""

import gzip
import re
import unicodedata

import numpy as np
import pytest

from lm.data.tokenizers import ByteTokenizer
from lm.errors import ConfigError, DataError
from lm.models.ngram import arpa, fit, pieces_of, read_arpa, write_arpa
from tests.models.ngram.ngram_oracle import BOS, corpus, store_of

VOCAB = 9
PIECES = ["<pad>", "<s>", "</s>", "a", "b c", "\n", "%0A", "é\u2003", "\x85"]


def model_of(order=3, smoothing="kneser_ney", **options):
    return fit([store_of(corpus(5, VOCAB, length=80))], VOCAB, BOS, order, smoothing, **options)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCAB, (6, 21))
    tokens[:, 0] = BOS
    return tokens[:, :-1], tokens[:, 1:], np.ones((6, 20), int)


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz"])
@pytest.mark.parametrize("smoothing", ["kneser_ney", "katz", "add_k"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_model_comes_back_exactly(tmp_path, order, smoothing, name):
    model = model_of(order, smoothing)
    write_arpa(model, tmp_path / name, PIECES)
    again = read_arpa(tmp_path / name, PIECES)
    assert again.order == order and again.tables.keys() == model.tables.keys()
    for key, table in model.tables.items():
        np.testing.assert_array_equal(again.tables[key], table)
    np.testing.assert_array_equal(again.log_probs(*rows()), model.log_probs(*rows()))


def test_float64_comes_back_to_a_millionth_and_blocks_of_rows_make_no_difference(tmp_path, monkeypatch):
    model = model_of(4, dtype=np.float64)
    write_arpa(model, tmp_path / "whole", PIECES)
    monkeypatch.setattr(arpa, "_ROWS", 7)
    write_arpa(model, tmp_path / "blocks", PIECES)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "blocks").read_bytes()
    again = read_arpa(tmp_path / "whole", PIECES, np.float64)
    np.testing.assert_allclose(again.log_probs(*rows()), model.log_probs(*rows()), atol=1e-6, rtol=0)


def test_the_file_is_what_the_format_says(tmp_path):
    model = model_of(2)
    write_arpa(model, tmp_path / "a.arpa", PIECES)
    lines = (tmp_path / "a.arpa").read_text().split("\n")
    assert lines[:6] == ["\\data\\", f"ngram 1={VOCAB + 1}", f"ngram 2={model.sizes[2]}", "", "\\1-grams:", "-99\t<unk>"]
    assert lines[-3:] == ["", "\\end\\", ""]
    prob, word, back_off = lines[6 + 4].split("\t")
    assert word == "b%20c"
    np.testing.assert_allclose(float(prob), model.tables["log_probs_1"][4] / np.log(10), rtol=1e-6)
    np.testing.assert_allclose(float(back_off), model.tables["back_offs_1"][4] / np.log(10), rtol=1e-6)
    assert [arpa.unescape(line.split("\t")[1]) for line in lines[6 : 6 + VOCAB]] == PIECES


def test_lines_in_any_order_and_other_blanks_are_read(tmp_path):
    model, path = model_of(3), tmp_path / "a.arpa"
    write_arpa(model, path, PIECES)
    head, *sections = re.split(r"(?<=-grams:\n)", path.read_text())
    mixed = [head]
    for section in sections:
        entries, end = section.split("\n\n", 1)
        mixed.append("\n".join(reversed(entries.split("\n"))).replace("\t", "  ") + "\n\n\n" + end)
    path.write_text("made by another tool\n\n" + "".join(mixed))
    for key, table in read_arpa(path, PIECES).tables.items():
        np.testing.assert_array_equal(model.tables[key], table)


def edited(path, change):
    lines = path.read_text().split("\n")
    change(lines)
    path.write_text("\n".join(lines))


DAMAGE = {
    "a number lost": (lambda lines: lines.__setitem__(7, lines[7].split("\t", 1)[1]), 8),
    "a word lost": (lambda lines: lines.__setitem__(8, lines[8].split("\t")[0]), 9),
    "no number": (lambda lines: lines.__setitem__(9, "x" + lines[9]), 10),
    "positive": (lambda lines: lines.__setitem__(9, "0.5\ta\t0"), 10),
    "nan": (lambda lines: lines.__setitem__(9, "nan\ta\t0"), 10),
    "another word": (lambda lines: lines.__setitem__(9, "-1\tq\t0"), 10),
    "a line lost": (lambda lines: lines.pop(9), 16),
    "twice": (lambda lines: lines.__setitem__(20, lines[19]), 21),
    "counts lost": (lambda lines: lines.pop(2), 3),
    "a section lost": (lambda lines: lines.__setitem__(17, ""), 19),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_that_names_the_place(tmp_path, name):
    change, line = DAMAGE[name]
    path = tmp_path / "a.arpa"
    write_arpa(model_of(3), path, PIECES)
    edited(path, change)
    with pytest.raises(DataError, match=rf"a\.arpa:{line}: ") as error:
        read_arpa(path, PIECES)
    assert "\n" not in str(error.value)


def test_a_file_that_ends_early_is_not_read(tmp_path):
    path = tmp_path / "a.arpa"
    write_arpa(model_of(3), path, PIECES)
    text = path.read_text()
    for part in range(0, len(text) - len("\\end\\\n"), 97):
        path.write_text(text[:part])
        with pytest.raises(DataError, match=r"a\.arpa:\d+: "):
            read_arpa(path, PIECES)
    (tmp_path / "b.gz").write_bytes(gzip.compress(text.encode())[:-100])
    with pytest.raises(DataError, match=r"b\.gz cannot be read after line \d+"):
        read_arpa(tmp_path / "b.gz", PIECES)
    with pytest.raises(DataError, match="does not exist"):
        read_arpa(tmp_path / "c", PIECES)


def test_a_history_without_its_own_line_is_named(tmp_path):
    path = tmp_path / "a.arpa"
    entries = {1: [f"-1\t{w}" for w in "abc"], 2: ["-1\ta b"], 3: ["-1\ta b c", "-1\tb a c"]}
    sections = "".join(f"\n\\{n}-grams:\n" + "\n".join(lines) + "\n" for n, lines in entries.items())
    path.write_text("\\data\\\n" + "".join(f"ngram {n}={len(lines)}\n" for n, lines in entries.items()) + sections + "\n\\end\\\n")
    with pytest.raises(DataError, match=r"a\.arpa:16: the first 2 words of this 3-gram are no 2-gram"):
        read_arpa(path, list("abc"))
    with pytest.raises(DataError, match="'d' of the vocabulary has no 1-gram"):
        read_arpa(path, list("abcd"))


def test_names_must_differ(tmp_path):
    for pieces in (["a"] * VOCAB, PIECES[:-1], [*PIECES[:-1], ""]):
        with pytest.raises(ConfigError, match="9 different names"):
            write_arpa(model_of(2), tmp_path / "a.arpa", pieces)
    assert not list(tmp_path.iterdir())


def test_any_piece_is_one_word_and_comes_back():
    pieces = pieces_of(ByteTokenizer())
    assert len({*map(arpa.escape, pieces)}) == len(pieces) == 259
    assert (pieces[256:], arpa.escape(pieces[0xE9]), arpa.escape(pieces[0])) == (["<pad>", "<s>", "</s>"], "%E9", "%00")
    for piece in [*pieces, "".join(map(chr, range(0x250))), "\u2028\u3000\U0001f600", "%", "%%41"]:
        word = arpa.escape(piece)
        assert word.split() == [word] and arpa.unescape(word) == piece
        assert "Cc" not in map(unicodedata.category, word) and word.encode()


class Twins:
    """Two ids of the same text, as a byte and a piece of SentencePiece are, and one without text."""

    vocab_size, pad_id, bos_id, eos_id = 6, 0, 1, 2

    def decode_bytes(self, ids):
        return [b"", b"", b"", b"a", b"a", b""][ids[0]]


def test_ids_with_the_same_text_have_names_of_their_own():
    assert pieces_of(Twins()) == ["<pad>", "<s>", "</s>", "a", "<4>", "<5>"]


@pytest.mark.parametrize("smoothing", ["kneser_ney", "katz", "add_k"])
@pytest.mark.parametrize(("order", "prune"), [(2, ()), (3, ()), (5, ()), (4, (2, 2))])
def test_kenlm_reads_the_same_probabilities(tmp_path, order, prune, smoothing):
    kenlm = pytest.importorskip("kenlm", reason="the comparison with KenLM needs: pip install -e '.[parity]'")
    model, path = model_of(order, smoothing, prune=prune), str(tmp_path / "a.arpa")
    write_arpa(model, path, PIECES)
    peer = kenlm.Model(path)
    assert peer.order == order
    tokens, targets, segments = rows(1)
    targets[:, -1] = 2
    ours = model.log_probs(tokens, targets, segments) / np.log(10)
    for row, wanted in zip(targets, ours, strict=True):
        sentence = " ".join(arpa.escape(PIECES[i]) for i in row[:-1])
        np.testing.assert_allclose([score for score, _, unknown in peer.full_scores(sentence) if not unknown], wanted, atol=2e-5)


def test_what_kenlm_leaves_out_gets_the_share_of_unknown_words(tmp_path):
    path = tmp_path / "a.arpa"
    path.write_text("\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-0.9\t<unk>\t0\n0\t<s>\t-0.3\n-0.7\t</s>\t0\n-0.5\tb\t-0.2\n"
                    "-0.6\ta\t-0.1\n\n\\2-grams:\n-0.25\t<s> a\n-0.35\ta b\n\n\\end\\\n")
    model = read_arpa(path, ["<pad>", "<s>", "</s>", "a", "b", "c"], np.float64)
    history = np.array([[1], [3], [5]])
    probs = model.distribution(history) / np.log(10)
    expected = [[-1.0, -0.25, -0.8, -1.2], [-0.8, -0.7, -0.35, -1.0], [-0.7, -0.6, -0.5, -0.9]]
    np.testing.assert_allclose(probs[:, 2:], expected, atol=1e-12)
    assert (probs[:, 1] == -np.inf).all()  # <s> is never predicted
