"""The extended attributes that are a file's own: those of its user, and its access control list.

Rule: nothing else is kept or given. What other names hold is a right (`security.capability`) or belongs to the host
(a label of its policy, what an overlay notes), and a checkpoint may lie.
Source: xattr(7), acl(5).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from ckpt.model.checkpoint import ExtendedAttribute, is_own_attribute


def attributes_of(file: int | str) -> tuple[ExtendedAttribute, ...]:
    """The attributes of an open file, or of the one at a path, by their names; no symbolic link is followed.

    Raises:
        OSError: they cannot be read.
    """
    found: list[ExtendedAttribute] = []
    for name in sorted(filter(is_own_attribute, _names(file))):
        try:
            value = os.getxattr(file, name) if isinstance(file, int) else _at(file, name)
        except OSError as error:
            if error.errno != errno.ENODATA:  # it was removed meanwhile
                raise
        else:
            found.append(ExtendedAttribute(name=name, value=value.hex()))
    return tuple(found)


def set_attributes(fd: int, attributes: Iterable[ExtendedAttribute]) -> None:
    """Let an open file have these attributes of its own, and no others; set its mode before.

    Raises:
        OSError: its file system has no such attributes.
    """
    wanted, there = set(attributes), set(attributes_of(fd))
    for name in {each.name for each in there} - {each.name for each in wanted}:
        os.removexattr(fd, name)
    for each in wanted - there:
        os.setxattr(fd, each.name, bytes.fromhex(each.value))


def _names(file: int | str) -> list[str]:
    try:
        return os.listxattr(file) if isinstance(file, int) else os.listxattr(file, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _at(path: str, name: str) -> bytes:
    return os.getxattr(path, name, follow_symlinks=False)
