"""The pocket BERT's tokenizer: WordPiece, as BERT has it, trained on the docstrings.

Lower case, split at blanks and punctuation, and each word into the longest pieces that the
vocabulary knows (Devlin et al., arXiv 1810.04805, section 3; Wu et al., arXiv 1609.08144, 4.1).
Rulers such as `-----`, which underline the headings of docstrings, count as blanks.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)
"""The special tokens, in the order of their ids, from 0."""
CONTINUES = "##"
"""How a piece begins that goes on with the word of the piece before it."""
RULER = r"([-=~^*_#+])\1{2,}"
RARE = 20


def train_wordpiece(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train the vocabulary; of equal text comes an equal tokenizer.

    Characters seen less often than `RARE` times become unknown.
    """
    told = list(texts)
    tokenizer = _tokenizer({})
    alphabet = _alphabet(tokenizer, told)
    # The trainer numbers these as it meets them, in no fixed order, and breaks ties by number.
    first = [*SPECIAL, *(CONTINUES + character for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(told, trainer)
    return _tokenizer(tokenizer.get_vocab())


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(RULER), " "), normalizers.BertNormalizer(lowercase=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in (CLS, SEP)],
    )
    return tokenizer


def _alphabet(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    assert tokenizer.normalizer is not None
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    return sorted(c for c, count in counts.items() if count >= RARE and not c.isspace())


def wrapped(tokenizer: Tokenizer, *, max_length: int) -> PreTrainedTokenizerFast:
    """Give it to transformers, as the tokenizer that `AutoTokenizer` will load."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
    )


def read_wordpiece(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model's folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def continues(tokenizer: Tokenizer) -> np.ndarray:
    """Say of each id whether it goes on with the word of the piece before it."""
    vocabulary = tokenizer.get_vocab()
    told = np.zeros(len(vocabulary), dtype=bool)
    for piece, index in vocabulary.items():
        told[index] = piece.startswith(CONTINUES)
    return told
