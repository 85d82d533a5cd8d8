"""Which layer of a teacher each layer of a student answers to."""

from collections.abc import Iterable

LayerMap = tuple[tuple[int, int], ...]
"""Pairs (student layer, teacher layer), each counted from 1; 0 are the embeddings."""


def uniform_layers(student: int, teacher: int) -> LayerMap:
    """Each of a student's layers to the one as far up in the teacher, embeddings to embeddings.

    m -> m * teacher / student, rounded up where that is no integer, so that last meets last. Source: Jiao et al. 2020
    (arXiv:1909.10351), section 3.2.

    >>> uniform_layers(2, 6)
    ((0, 0), (1, 3), (2, 6))
    """
    return tuple((layer, -(-layer * teacher // student)) for layer in range(student + 1))


def last_layers(student: int, teacher: int, count: int = 1) -> LayerMap:
    """The last `count` layers of the student to those of the teacher, one by one. Source of 1: MiniLM (2002.10957).

    >>> last_layers(2, 6), last_layers(2, 6, 2)
    (((2, 6),), ((1, 5), (2, 6)))
    """
    return tuple((student - back, teacher - back) for back in reversed(range(count)))


def check_layers(pairs: Iterable[tuple[int, int]], student: int, teacher: int, *, embeddings: bool) -> LayerMap:
    """`pairs` as a LayerMap. Raises ValueError on none, or a layer that the models do not have."""
    found = tuple((int(one), int(other)) for one, other in pairs)
    if not found:
        raise ValueError("a layer map has no pairs; give at least one (student layer, teacher layer)")
    least = 0 if embeddings else 1
    for one, other in found:
        if not least <= one <= student or not least <= other <= teacher:
            raise ValueError(
                f"the layer map pairs ({one}, {other}); expected a student layer from {least} to {student} and a "
                f"teacher layer from {least} to {teacher}"
            )
    return found
