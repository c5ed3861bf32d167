"""The counting baseline is a distribution, and the one that the textbook formula gives."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from foredraft.training.decoder import ngram
from foredraft.training.decoder.ngram import NGram

TEXT = np.array([1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 1, 3, 3, 2, 1, 2, 3, 1], dtype=np.uint16)


def textbook(tokens, n, history, word):
    """Interpolated Kneser-Ney by dictionaries (Chen & Goodman, 1999), one discount an order."""
    runs = {
        k: [tuple(tokens[i : i + k]) for i in range(len(tokens) - k + 1)] for k in range(1, n + 2)
    }
    probability = 1 / ngram.VOCAB_SIZE
    for k in range(1, n + 1):
        counts = Counter(runs[k]) if k == n else Counter(gram[1:] for gram in set(runs[k + 1]))
        once, twice = (sum(c == m for c in counts.values()) for m in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.0
        following = defaultdict(dict)
        for gram, count in counts.items():
            following[gram[:-1]][gram[-1]] = count
        seen = following.get(tuple(history[len(history) - k + 1 :]))
        if seen:
            total = sum(seen.values())
            own = seen[word] - discount if word in seen else 0.0
            probability = own / total + discount * len(seen) / total * probability
    return probability


@pytest.mark.parametrize("n", [1, 2, 3])
def test_probabilities_equal_the_textbook_s(n):
    model = NGram.fit(TEXT, n)
    query = np.array([3, 1, 2, 3, 5, 9, 2, 1, 2, 4], dtype=np.uint16)
    wanted = [
        textbook(TEXT.tolist(), n, query[i - n + 1 : i].tolist(), int(query[i]))
        for i in range(n - 1, len(query))
    ]
    np.testing.assert_allclose(np.exp(model.log_probs(query)), wanted, rtol=1e-12)


@pytest.mark.parametrize("history", [[1, 2], [9, 9], [2, 9], [3, 3]])
def test_probabilities_sum_to_one_after_any_history(history):
    model = NGram.fit(TEXT, 3)
    runs = np.array([[*history, word] for word in range(ngram.VOCAB_SIZE)], dtype=np.uint16)
    total = float(np.exp(model.log_probs(runs.flatten())[:: runs.shape[1]]).sum())
    assert total == pytest.approx(1.0, abs=1e-9)


def test_too_many_tokens_for_an_integer_are_refused():
    with pytest.raises(ValueError, match="1 to 5"):
        NGram.fit(TEXT, 6)


def test_token_ids_beyond_the_packing_are_refused():
    with pytest.raises(ValueError, match="12 bits"):
        NGram.fit(np.array([1, 5000, 2, 3, 4, 5]), 2)
