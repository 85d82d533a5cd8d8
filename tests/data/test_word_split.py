import pytest

from jaxptft.data import split_words


@pytest.mark.parametrize(
    "text, words",
    [
        # As CoNLL-2003's sentences are divided, by hand.
        ("U.S. rejects German call.", "U.S.|rejects|German|call|."),
        ("On 1996-08-22, 1,234.5 (3/4) left-wing", "On|1996-08-22|,|1,234.5|(|3/4|)|left-wing"),
        ("O'Neill's AT&T; 'yes'", "O'Neill|'s|AT&T|;|'|yes|'"),
        ("they’re  at\u00a0home!\n", "they|’re|at|home|!"),
        ("北京 2008年", "北|京|2008|年"),
        ("naïve cafe\u0301 हिन्दी €5–6", "naïve|cafe\u0301|हिन्दी|€|5|–|6"),
        ("x_1@mail.org", "x_1|@|mail|.|org"),
        ("   ", ""),
    ],
)
def test_words_are_slices_of_the_text(text, words):
    assert "|".join(text[start:end] for start, end in split_words(text)) == words


def test_nothing_but_white_space_is_left_out():
    text = "A “quoted” word\u200b, 5% of it…\ttab"
    inside = {place for start, end in split_words(text) for place in range(start, end)}
    assert [character for place, character in enumerate(text) if place not in inside] == [" ", " ", " ", " ", " ", "\t"]
