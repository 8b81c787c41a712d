"""Backends in memory: one that is held to the same promises as the directory, one that dies where it is told.

A Disk outlives its backends as a real one outlives processes: what was not flushed may be lost at a power cut,
and locks end with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ckpt.errors import Locked, NoSpace, ObjectCorrupt
from ckpt.store.backend import Content, ObjectStat, check_name
from ckpt.units import ByteCount


class PowerCut(BaseException):
    """The process is gone: no except clause of the program may catch this, nothing runs afterwards."""


class Disk:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.before: dict[str, bytes | None] = {}
        self.leftovers = 0
        self.leases: list[set[str]] = []
        self.writers = 0
        self.swept = False
        self.guard = threading.RLock()

    def change(self, name: str, content: bytes | None) -> None:
        self.before.setdefault(name, self.objects.get(name))
        if content is None:
            del self.objects[name]
        else:
            self.objects[name] = content

    def power_cut(self, is_lost: Callable[[str], bool]) -> None:
        """Lose some of what was not flushed, and all locks."""
        for name, content in self.before.items():
            if not is_lost(name):
                continue
            if content is None:
                self.objects.pop(name, None)
            else:
                self.objects[name] = content
        self.before.clear()
        self.leases.clear()
        self.writers = 0
        self.swept = False


class MemoryLease:
    def __init__(self, disk: Disk) -> None:
        self.names: set[str] = set()
        disk.leases.append(self.names)

    def pin(self, names: Iterable[str]) -> None:
        self.names.update(names)


class MemoryBackend:
    place = "memory"

    def __init__(self, disk: Disk | None = None, capacity_bytes: int = 1 << 40) -> None:
        self.disk = disk or Disk()
        self._capacity = capacity_bytes
        self._seen: set[str] = set()

    def create(self, name: str, content: Content) -> ByteCount | None:
        check_name(name)
        with self.disk.guard:
            self._seen.add(name)
            if name in self.disk.objects:
                return None
            return self._put(name, content if isinstance(content, bytes) else b"".join(content))

    def replace(self, name: str, content: bytes) -> ByteCount:
        check_name(name)
        with self.disk.guard:
            self._seen.add(name)
            return self._put(name, content)

    def flush(self) -> None:
        with self.disk.guard:
            for name in self._seen:
                self.disk.before.pop(name, None)
            self._seen.clear()

    def read(self, name: str, limit: int) -> bytes | None:
        check_name(name)
        content = self.disk.objects.get(name)
        if content is not None and len(content) > limit:
            raise ObjectCorrupt(kind="object", name=name, reason="too long")
        return content

    def read_part(self, name: str, offset: int, count: int) -> bytes | None:
        check_name(name)
        content = self.disk.objects.get(name)
        return None if content is None else content[offset : offset + count]

    def stat(self, name: str) -> ObjectStat | None:
        check_name(name)
        with self.disk.guard:
            self._seen.add(name)
            if name not in self.disk.objects:
                return None
            size = ByteCount(len(self.disk.objects[name]))
        return ObjectStat(size_bytes=size, space_bytes=size)

    def list(self, folder: str) -> Iterator[str]:
        check_name(folder)
        return iter(sorted(name for name in self.disk.objects if name.startswith(f"{folder}/")))

    def delete(self, name: str) -> ByteCount:
        check_name(name)
        with self.disk.guard:
            self._seen.add(name)
            if name not in self.disk.objects:
                return ByteCount(0)
            size = len(self.disk.objects[name])
            self.disk.change(name, None)
        return ByteCount(size)

    @contextmanager
    def lease(self) -> Iterator[MemoryLease]:
        lease = MemoryLease(self.disk)
        try:
            yield lease
        finally:
            self.disk.leases = [names for names in self.disk.leases if names is not lease.names]

    def pinned(self) -> frozenset[str]:
        return frozenset(name for names in self.disk.leases for name in names)

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self.disk.guard:
            if self.disk.swept:
                raise Locked(subject="The store memory", holder="a sweep")
            self.disk.writers += 1
        try:
            yield
        finally:
            with self.disk.guard:
                self.disk.writers -= 1

    @contextmanager
    def sweeping(self, *, patient: bool) -> Iterator[None]:
        if self.disk.swept or self.disk.writers:
            raise Locked(subject="The store memory", holder="a writer")
        self.disk.swept = True
        try:
            yield
        finally:
            self.disk.swept = False

    def clear_leftovers(self) -> tuple[int, ByteCount]:
        count, self.disk.leftovers = self.disk.leftovers, 0
        return count, ByteCount(count)

    def _put(self, name: str, content: bytes) -> ByteCount:
        used = sum(map(len, self.disk.objects.values()))
        if used + len(content) > self._capacity:
            raise NoSpace(place=self.place, available_bytes=self._capacity - used, needed_bytes=len(content))
        self.disk.change(name, content)
        return ByteCount(len(content))


class DyingBackend(MemoryBackend):
    """Dies at its n-th change, before it or just after it; nothing works from then on."""

    def __init__(self, disk: Disk, *, dies_at: int, after: bool) -> None:
        super().__init__(disk)
        self._left = dies_at
        self._after = after
        self._dead = False

    def create(self, name: str, content: Content) -> ByteCount | None:
        with self._change():
            return super().create(name, content)

    def replace(self, name: str, content: bytes) -> ByteCount:
        with self._change():
            return super().replace(name, content)

    def flush(self) -> None:
        with self._change():
            super().flush()

    def delete(self, name: str) -> ByteCount:
        with self._change():
            return super().delete(name)

    @contextmanager
    def sweeping(self, *, patient: bool) -> Iterator[None]:
        if self._dead:
            raise PowerCut
        with super().sweeping(patient=patient):
            yield

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self.disk.guard:
            if self._dead:
                raise PowerCut
            self._left -= 1
            dies = self._left < 0
            if dies and not self._after:
                self._die()
            yield
            if dies:
                self._die()

    def _die(self) -> None:
        self._dead = True
        self.disk.leftovers += 1
        raise PowerCut


class CrowdedBackend(MemoryBackend):
    """Another one does something between two calls: just before the first read of a name that begins so."""

    def __init__(self, disk: Disk, beginning: str, others: Callable[[], object]) -> None:
        super().__init__(disk)
        self._beginning = beginning
        self._others: Callable[[], object] | None = others

    def read(self, name: str, limit: int) -> bytes | None:
        self._let_in(name)
        return super().read(name, limit)

    def read_part(self, name: str, offset: int, count: int) -> bytes | None:
        self._let_in(name)
        return super().read_part(name, offset, count)

    def _let_in(self, name: str) -> None:
        if self._others is not None and name.startswith(self._beginning):
            others, self._others = self._others, None
            others()
