"""A CLIP tokenizer of the published size, generated: for models with random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain, count, pairwise, product

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_VOCABULARY_SIZE = 49408
_PROMPT_TOKENS = 77  # start and end included


def build_tokenizer(family: str, component: str = "tokenizer") -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer of the published size with generated merges.

    49,408 entries in the published order: the 256 byte symbols (``!`` is 0), the same with the
    end-of-word mark, 48,894 merges, start (49406) and end (49407). Words of usual prompts are one
    token each; other lower-case words fall into pieces of two or three letters, the rest into
    bytes. At most 77 tokens; the padding token is the published one.

    Args:
        family: One of ``models.random.FAMILIES``.
        component: ``"tokenizer"``, or ``"tokenizer_2"`` where there is one.

    Example:
        >>> build_tokenizer("sd15").tokenize("A photo of a sks dog")
        ['a</w>', 'photo</w>', 'of</w>', 'a</w>', 'sks</w>', 'dog</w>']
    """
    vocabulary, merges = _vocabulary()
    pad = "!" if component == "tokenizer_2" or family.startswith("sd21") else _END
    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        model_max_length=_PROMPT_TOKENS,
        pad_token=pad,
    )


# Words of the usual prompts of personalization: function words, subjects, places, picture terms.
_WORDS = """
a an and are around as at background behind being beside by cube for from front her his i in inside
into is it its my near next of on one or other over purple red shape some that the their there this
through to top two under up wet with without
animal backpack bag ball bear berry bike bird boat boot bottle bowl boy can candle car cartoon cat
chair clock corgi cup dog doll duck face figure fish flower girl glasses hat horse house kitten lamp
man monster mug people person plushie poop puppy robot rubber shoe sloth sneaker stuffed teapot toy
tree vase wolf woman
autumn beach blanket bridge city desert eiffel field floor forest garden grand grass jungle kitchen
lake leaves mirror mountain night ocean paris park river road room rug sand sea sky snow street
sunflowers sunset table tower town water wheat window winter wooden
angry baby big black blue bright brown chef christmas clean cobblestone colorful cool cute dark
dirty fancy fire gold good gray green happy holding large light little looking nice old orange
outfit pink police rainbow running santa shiny silver sitting sleeping small standing swimming tall
wearing weird white yellow young
anime art artistic background bad best blurry close color concept crop cropped depiction detail
detailed digital drawing high highly hq illustration image low oil painting photo photograph picture
portrait poster quality realistic render rendering rendition resolution sharp shot sketch studio
style watercolor
sks zwx olis pky
"""
_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by frequency in English


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of all symbols, and the merges in order of priority."""
    alphabet = sorted(ByteLevel.alphabet())
    merges: dict[str, tuple[str, str]] = {}
    for pair in chain(_word_merges(), _filling_merges()):
        merges.setdefault("".join(pair), pair)
        if len(merges) == _VOCABULARY_SIZE - 2 * len(alphabet) - 2:
            break
    symbols = [*alphabet, *(byte + _WORD_END for byte in alphabet), *merges, _START, _END]
    return {symbol: index for index, symbol in enumerate(symbols)}, list(merges.values())


def _word_merges() -> list[tuple[str, str]]:
    """Merges by which each of the words becomes one token: the most frequent pair, repeatedly.

    Sennrich et al., "Neural machine translation of rare words with subword units", ACL 2016. Not
    by the trainer of the tokenizers library, which orders equally frequent pairs by chance.
    """
    words = [(*word[:-1], word[-1] + _WORD_END) for word in _WORDS.split()]
    merges = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        merge = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(merge)
        words = [_merged(word, merge) for word in words if len(word) > 1]
    return merges


def _merged(word: tuple[str, ...], merge: tuple[str, str]) -> tuple[str, ...]:
    for i, pair in enumerate(pairwise(word)):
        if pair == merge:
            return (*word[:i], "".join(pair), *_merged(word[i + 2 :], merge))
    return word


def _filling_merges() -> Iterator[tuple[str, str]]:
    """All strings of two letters, with and without the end-of-word mark, then of three, and on."""
    for length in count(2):
        for *first, last in product(_LETTERS, repeat=length):
            yield "".join(first), last
            yield "".join(first), last + _WORD_END
