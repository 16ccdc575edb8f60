"""What vectors know: scores equal loops, hand-made vectors have the answers that they were made for."""

import numpy as np
import pytest

from lm.errors import DataError
from lm.words import Vectors, analogies, nearest, similarity, spearman
from lm.words.scores import ranks

WORDS = ["man", "woman", "king", "queen", "boy", "girl", "apple"]
MATRIX = np.array([[1, 0, 0, 0], [1, 0, 0, 1], [1, 2, 0, 0], [1, 2, 0, 1], [1, 0, 1, 0], [1, 0, 1, 1], [-1, 0, 0, 0]], np.float32)


@pytest.fixture(scope="module")
def vectors():
    """Vectors whose differences mean something."""
    return Vectors(WORDS, MATRIX)


@pytest.fixture(scope="module")
def random_vectors():
    """50 words w0 to w49 with vectors of 4 numbers."""
    return Vectors([f"w{i}" for i in range(50)], np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))


def test_ranks_of_equal_values_are_their_mean():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def test_rank_correlation_of_distinct_values_is_that_of_the_squared_differences():
    a, b = np.random.default_rng(0).permutation(20), np.random.default_rng(1).permutation(20)
    assert spearman(a, b) == pytest.approx(1 - 6 * ((a - b) ** 2).sum() / (20 * (20**2 - 1)), abs=1e-12)
    assert spearman(a, np.exp(a / 10)) == pytest.approx(1) and np.isnan(spearman(a, np.ones(20)))


def test_rank_correlation_with_ties_is_pearsons_of_mean_ranks():
    a, b = np.random.default_rng(2).integers(0, 6, (2, 40))
    by_counting = [[1 + (values < x).sum() + ((values == x).sum() - 1) / 2 for x in values] for values in (a, b)]
    assert spearman(a, b) == pytest.approx(np.corrcoef(*by_counting)[0, 1], abs=1e-12)


def test_nearest_words_are_those_of_the_largest_cosine(random_vectors):
    unit = random_vectors.matrix / np.linalg.norm(random_vectors.matrix, axis=1, keepdims=True)
    cosines = {f"w{i}": float(unit[7] @ unit[i]) for i in range(50) if i != 7}
    found = nearest(random_vectors, "w7", 12)
    assert [word for word, _ in found] == sorted(cosines, key=lambda word: -cosines[word])[:12]
    assert [cosine for _, cosine in found] == pytest.approx([cosines[word] for word, _ in found], abs=1e-6)
    assert len(nearest(random_vectors, "w7", 1000)) == 49
    with pytest.raises(DataError, match="'xyz' has no vector"):
        nearest(random_vectors, "xyz")


@pytest.mark.parametrize("mark", ["\t", ",", " "], ids=["tabs", "commas", "spaces"])
def test_similarity_reads_pairs_and_leaves_out_those_without_vectors(tmp_path, random_vectors, mark):
    rng = np.random.default_rng(3)
    pairs = [(f"W{a}", f"w{b}", score) for a, b, score in zip(*rng.integers(0, 50, (2, 30)), rng.integers(0, 9, 30), strict=True)]
    rows = [("first", "second", "score"), *pairs, ("w1", "none", 3.5)]
    lines = ["# comment", *[mark.join(map(str, row)) for row in rows[:5]], "", *[mark.join(map(str, row)) for row in rows[5:]]]
    (tmp_path / "pairs").write_text("\n".join(lines))
    cosines = [float(random_vectors.unit[int(a[1:])] @ random_vectors.unit[int(b[1:])]) for a, b, _ in pairs]
    result = similarity(random_vectors, tmp_path / "pairs")
    assert result == {"rho": pytest.approx(spearman(cosines, [score for *_, score in pairs])), "pairs": 31, "found": 30}


@pytest.mark.parametrize(("text", "message"), [
    ("a b 1\na b\n", "line 2: two words and a number"),
    ("a b 1\na b c\n", "line 2: two words and a number"),
    ("x y 1\nman king 2\n", "only 1 of 2 pairs"),
])
def test_a_file_of_pairs_that_is_none_is_named(tmp_path, vectors, text, message):
    (tmp_path / "pairs").write_text(text)
    with pytest.raises(DataError, match=message):
        similarity(vectors, tmp_path / "pairs")


QUESTIONS = """: family
man woman king queen
Man Woman Boy Girl
man woman apple queen
: with unknown words
man woman uncle aunt
man king woman queen
"""


def test_analogies_by_section_and_in_all(tmp_path, vectors):
    (tmp_path / "questions").write_text(QUESTIONS)
    result = analogies(vectors, tmp_path / "questions")
    assert result["questions"] == 5 and result["answered"] == 4
    assert result["sections"]["with unknown words"] == {"accuracy": 1.0, "questions": 2, "answered": 1}
    assert result["sections"]["family"]["answered"] == 3
    assert result["accuracy"] == pytest.approx((3 * result["sections"]["family"]["accuracy"] + 1) / 4)
    few = analogies(vectors, tmp_path / "questions", restrict=4)
    assert few["answered"] == 2 and few["sections"]["family"] == {"accuracy": 1.0, "questions": 3, "answered": 1}


def test_answers_are_those_of_a_loop_and_never_words_of_the_question(tmp_path, random_vectors, monkeypatch):
    from lm.words import scores

    monkeypatch.setattr(scores, "BLOCK", 7)
    rng, unit = np.random.default_rng(4), random_vectors.unit
    rows, right = rng.integers(0, 50, (40, 4)), 0
    for i, (a, b, c, d) in enumerate(rows):
        cosines = unit @ (unit[b] - unit[a] + unit[c])
        order = [w for w in np.argsort(-cosines) if w not in (a, b, c)]
        if i % 2:
            rows[i, 3] = d = order[0]
        right += order[0] == d
    (tmp_path / "questions").write_text("\n".join(" ".join(f"w{w}" for w in row) for row in rows))
    result = analogies(random_vectors, tmp_path / "questions")
    assert 20 <= right < 40 and result["accuracy"] == right / 40


@pytest.mark.parametrize(("text", "message"), [("a b c\n", "line 1: four words"), (": section\n", "no questions")])
def test_a_file_of_questions_that_is_none_is_named(tmp_path, vectors, text, message):
    (tmp_path / "questions").write_text(text)
    with pytest.raises(DataError, match=message):
        analogies(vectors, tmp_path / "questions")


def test_unknown_questions_have_no_accuracy(tmp_path, vectors):
    (tmp_path / "questions").write_text("a b c d\n")
    assert analogies(vectors, tmp_path / "questions")["accuracy"] is None
