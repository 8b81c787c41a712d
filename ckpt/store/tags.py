"""Tags: names that are moved from checkpoint to checkpoint, made of objects that never change.

Rules: F56 to F58 of images/FORMAT.md. Each move makes a mark with a higher serial, then deletes the older ones:
at every instant, crash or not, the tag is where it was or where it goes.
"""

from __future__ import annotations

import itertools

from ckpt.codec.frame import Kind
from ckpt.codec.names import refuse_label
from ckpt.codec.objects import TAG_MARK
from ckpt.codec.records import TagMark
from ckpt.errors import BadName, ObjectMissing
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.layout import TagName
from ckpt.store.objects import Objects
from ckpt.store.vault import Vault
from ckpt.units import CheckpointId, Tag


class Tags:
    """The tags of a store. What changes them must hold the store's lock."""

    def __init__(self, backend: Backend, vault: Vault) -> None:
        self._backend = backend
        self._objects = Objects(backend, vault)

    def current(self) -> dict[Tag, CheckpointId]:
        """Which checkpoint each tag names; it may be gone."""
        return {mark.tag: mark.checkpoint for mark in self.marks()}

    def of_checkpoints(self) -> dict[CheckpointId, tuple[Tag, ...]]:
        """The tags of each checkpoint that has any, sorted."""
        found: dict[CheckpointId, tuple[Tag, ...]] = {}
        for tag, checkpoint in self.current().items():
            found[checkpoint] = (*found.get(checkpoint, ()), tag)
        return found

    def marks(self) -> list[TagName]:
        """All marks, those of a tag together and the one that counts last."""
        return sorted(mark for name in self._backend.list(layout.TAGS) if (mark := layout.tag_in(name)))

    def superseded(self) -> list[TagName]:
        """Marks that a crash left beside a newer one of their tag."""
        marks = self.marks()
        return [mark for mark, next_ in itertools.pairwise(marks) if mark.tag == next_.tag]

    def give(self, checkpoint: CheckpointId, tag: Tag) -> None:
        """Have the tag name this checkpoint, and no other.

        Raises:
            BadName: no tag can be called so.
        """
        if refuse_label(tag):
            raise BadName(kind="tag", name=tag)
        older = self._marks_of(tag)
        if older and older[-1].checkpoint == checkpoint:
            return
        serial = older[-1].serial + 1 if older else 1
        mark = TagMark(tag=tag, serial=serial, checkpoint=checkpoint)
        name = TagName(tag=tag, serial=serial, checkpoint=checkpoint).object
        self._objects.put_plain(name, Kind.TAG, TAG_MARK.encode(mark))
        self._backend.flush()
        self._delete(older)

    def take(self, tag: Tag) -> None:
        """Remove the tag.

        Raises:
            ObjectMissing: there is none.
        """
        marks = self._marks_of(tag)
        if not marks:
            raise ObjectMissing(
                place=self._backend.place, kind="tag", name=tag, remedy="'ckpt list' shows the tags."
            )
        self._delete(marks)

    def _marks_of(self, tag: Tag) -> list[TagName]:
        return [mark for mark in self.marks() if mark.tag == tag]

    def _delete(self, marks: list[TagName]) -> None:
        for mark in marks:
            # The oldest first, and durably: else an older one would count again after a crash.
            self._backend.delete(mark.object)
            self._backend.flush()
