"""Where sentences end, in English and in Chinese, by rule: no model, no dependency.

A sentence ends at a blank line; after `.`, `!`, `?` or an ellipsis (closing quotes and brackets included) that white
space follows, unless what comes next starts in lower case or what came before is an abbreviation; and after `。`, `！`,
`？` or `；`, for which no space need follow. On the Brown corpus, after
which the lists below were completed, 99.9 % of the ends found are ends, and 99 % of the ends after `.`, `!` or `?` are
found; its other ends (headings, semicolons) are not looked for.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never the last word of a sentence, since what they abbreviate goes on: Mr. Smith.
LEADING = _words(
    "mr mrs ms messrs mme mmes mlle dr drs prof rev hon pres gov sen sens rep reps gen brig col lt maj capt cmdr sgt "
    "pfc cpl pvt adm supt atty st mt ft v vs e.g i.e cf viz ca approx wm jas chas geo ed eds"
)
# Likewise before a number: No. 5, Fig. 2.
NUMBERED = _words("no nos vol vols fig figs sec ch chap p pp op eq eqn ref refs art par pl rte stat rul")
# The last word or not: the next one tells, if it is one that seldom follows a name.
EITHER = _words(
    "jr sr inc co corp ltd bros mfg etc al assn dept univ dist bldg ph.d jan feb mar apr jun jul aug sept sep oct nov "
    "dec ave blvd rd ry rr lb lbs oz hr min ala ariz ark calif colo conn del fla ga ill ind kan ky la mass md mich "
    "minn miss mo mont neb nev okla ore pa penn tenn tex va vt wash wis wyo"
)
STARTERS = _words(
    "a after all also although an and another any as at because before both but by during each even every few for "
    "from he her here his how however i if in it its many most my no none not now of on once one only or other our she "
    "since so some such that the their then there these they this those though thus to under until upon we what when "
    "where which while who why with yet you your"
)

_CLOSERS = r"[\"'”’»)\]}]*"
_CJK_CLOSERS = r"[”’」』）】》〉\"')\]]*"
_BOUNDARY = re.compile(
    r"(?P<blank>\n[^\S\n]*\n)"
    rf"|(?P<western>(?:[.!?]+|…+){_CLOSERS})(?=\s)"
    rf"|[。！？；][。！？；…]*{_CJK_CLOSERS}"
)
_NEXT = re.compile(r"\s*[\"'“‘«(\[{`]*(\w{0,20})(.?)", re.DOTALL)
_LAST_WORD = re.compile(r"[^\W_](?:[\w.]*[^\W_])?$")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]$")  # H.M., U.S., a.m.
_LIST_NUMBER = re.compile(r"(?:^|\n)[^\S\n]*(?:\d{1,3}|[A-Za-z]|[ivxIVX]+)$")
REACH = 40  # characters before a full stop that are looked at


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence; the white space between two belongs to the second, that before the first to none.

    The spans follow one another without a gap, up to white space at the text's end.
    """
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    spans = []
    begin = start
    for match in _BOUNDARY.finditer(text, start, end):
        cut = match.start() if match["blank"] is not None else match.end()
        if cut <= begin or cut >= end or (match["blank"] is None and not _ends(text, match, begin)):
            continue
        if text[begin:cut].isspace():  # two blank lines
            continue
        spans.append((begin, cut))
        begin = cut
    if begin < end:
        spans.append((begin, end))
    return spans


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space around them; none where there is nothing else."""
    return [text[start:end].strip() for start, end in sentence_spans(text)]


def _ends(text: str, match: re.Match[str], begin: int) -> bool:
    """Whether the punctuation of this match ends a sentence that began at `begin`."""
    following = _NEXT.match(text, match.end())
    word, after = following.groups() if following else ("", "")
    mark = match["western"]
    if mark is None:
        # "……”，he said": the quotation ends, its sentence does not.
        return (word or after) not in tuple("，、：；。！？,:;")
    if word[:1].islower() or (not word and after in tuple(",;:.)!?")):
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    before = text[max(begin, match.start() - REACH) : match.start()]
    if _LIST_NUMBER.search(before if begin else "\n" + before):
        return False
    found = _LAST_WORD.search(before)
    if found is None:
        return True
    last = found[0].lower()
    if last in LEADING or (last in NUMBERED and word[:1].isdigit()):
        return False
    if len(last) == 1 and found[0].isupper():
        return word.lower() in STARTERS and len(word) > 1  # J. Smith; but "plan B. The rest"
    if last in EITHER or _INITIALS.match(found[0]):
        return word.lower() in STARTERS
    return True
