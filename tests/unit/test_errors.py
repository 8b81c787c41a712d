"""The error tree keeps its promises: codes by family, sentences that need no more than the fields."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterator

import pytest

from ckpt import errors

FAMILIES = (
    (errors.HostError, range(10, 20)),
    (errors.CriuError, range(20, 30)),
    (errors.Incompatible, range(30, 40)),
    (errors.StoreError, range(40, 50)),
    (errors.RemoteError, range(50, 60)),
    (errors.ConflictError, range(60, 70)),
)


def tree(kind: type[errors.CkptError] = errors.CkptError) -> Iterator[type[errors.CkptError]]:
    for each in kind.__subclasses__():
        yield each
        yield from tree(each)


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_sentence_and_hint_use_only_declared_fields(kind: type[errors.CkptError]) -> None:
    declared = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for template in (kind.sentence, kind.hint):
        used = {name for _, name, _, _ in string.Formatter().parse(template) if name}
        assert used <= declared, template


def test_slugs_are_unique_and_exit_codes_belong_to_their_family() -> None:
    kinds = list(tree())
    slugs = [kind.slug for kind in kinds]
    assert len(slugs) == len(set(slugs))
    for family, codes in FAMILIES:
        assert all(kind.exit_code in codes for kind in kinds if issubclass(kind, family))


def test_a_missing_field_is_a_bug_and_not_a_sentence_with_a_hole() -> None:
    with pytest.raises(TypeError, match="name"):
        errors.NoSuchTarget(kind="job")  # type: ignore[call-arg]


def test_lists_are_told_in_one_sentence() -> None:
    error = errors.CannotCheckpoint(target="pid 7", reasons=("it is traced", "it holds io_uring"))
    assert str(error) == "pid 7 cannot be checkpointed: it is traced; it holds io_uring."
