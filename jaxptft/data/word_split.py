"""Text -> where its words are, for a tagger: every word is a slice of the text, so that nothing about it is lost.

Words are told apart as newspaper corpora do: at white space and at punctuation marks, each of which is a word, but
not inside `U.S.`, `1,234.5`, `1996-08-22`, `AT&T`, `O'Neill` and `left-wing`; `'s` and the like stand alone. A Chinese
character is a word.
"""

import re
import unicodedata

from jaxptft.data.token_table import is_han

# Over the text's shape: a letter is a, a digit 0, a Chinese character 漢, white space a space, an apostrophe '.
_WORD = re.compile(
    r"(?:a\.){2,}(?!a)|"  # U.S.
    r"0+(?:[.,:/-]0+)+(?![a0])|"
    r"'a{1,2}(?![a0])|"  # 's, 're
    r"[a0]+(?:[&-][a0]+|'a{3,})*|"
    r"漢|[^ ]"
)
_APOSTROPHES = "'’"


def split_words(text: str) -> list[tuple[int, int]]:
    """The words of a text, as (first character, character after the last), in order.

    >>> [("Mr. O'Neill's U.S. visa"[start:end]) for start, end in split_words("Mr. O'Neill's U.S. visa")]
    ['Mr', '.', "O'Neill", "'s", 'U.S.', 'visa']
    """
    return [match.span() for match in _WORD.finditer("".join(map(_shape, text)))]


def _shape(character: str) -> str:
    if character.isspace():
        return " "
    if character.isdecimal():
        return "0"
    if is_han(character):
        return "漢"
    if character in _APOSTROPHES:
        return "'"
    if character.isascii() and not character.isalpha():
        return character if character != "_" else "a"
    # Marks that a letter carries and invisible joiners are part of its word; punctuation and symbols are not.
    return "*" if unicodedata.category(character)[0] in "PS" else "a"
