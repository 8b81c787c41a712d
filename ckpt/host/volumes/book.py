"""Which volumes the jobs of this host have: one directory for each job, with its images and a list of them.

    STATE/volumes/JOB/volumes.json      the list
                      0.img, 1.img …    the images
    STATE/volumes/.JOB.new/             images that are just being made or fetched
    STATE/volumes/.JOB.old/             what the job had, until a restore has succeeded
    STATE/volumes/.JOB.gone/            rubbish

Rules: the list appears whole or not at all. No job's name begins with a dot.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ckpt.errors import ObjectCorrupt
from ckpt.host import journal
from ckpt.units import DeviceNumber, JobName

VOLUMES_MAX: Final = 64
_LIST: Final = "volumes.json"
_LIST_BYTES_MAX: Final = 1 << 20
_VERSION: Final = 1
_IMAGE: Final = re.compile(r"[0-9]{1,3}\.img", re.ASCII)
_JOB: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """One volume of a job.

    `image` is the name of its image file. `device` is the number that the workload knows, and that the volume
    has wherever it is free. `made` are the directories that were made for the mount, the uppermost first.
    """

    mountpoint: str
    filesystem: str
    image: str
    device: DeviceNumber
    made: tuple[str, ...]


class Book:
    """The volumes of this host's jobs."""

    def __init__(self, state: str) -> None:
        """Keep them below the directory `state`."""
        self._root = f"{state}/volumes"

    def directory(self, job: JobName) -> str:
        """Where the job's images are."""
        return f"{self._root}/{job}"

    def new(self, job: JobName) -> str:
        """Where images of the job are made or fetched."""
        return f"{self._root}/.{job}.new"

    def old(self, job: JobName) -> str:
        """Where the job's images are while others take their place."""
        return f"{self._root}/.{job}.old"

    def jobs(self) -> tuple[JobName, ...]:
        """All jobs that have volumes."""
        with suppress(FileNotFoundError):
            return tuple(JobName(name) for name in sorted(os.listdir(self._root)) if _JOB.fullmatch(name))
        return ()

    def make_new(self, job: JobName) -> str:
        """Make the directory for new images, empty; gives its path."""
        directory = self.new(job)
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        self.discard(directory)
        os.mkdir(directory, mode=0o700)
        return directory

    def discard(self, directory: str) -> None:
        """Remove a directory of images, if it is there: in one step, as far as anybody can see."""
        gone = f"{self._root}/.{os.path.basename(directory).removeprefix('.')}.gone"
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.rename(directory, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def move(self, directory: str, to: str) -> None:
        """Give a directory of images another place; durable."""
        os.rename(directory, to)
        journal.sync_directory(self._root)

    def write(self, directory: str, records: tuple[VolumeRecord, ...]) -> None:
        """Replace the list in a directory of images; durable."""
        document = {"version": _VERSION, "volumes": [dataclasses.asdict(record) for record in records]}
        path = f"{directory}/{_LIST}"
        with open(path + ".new", "w", encoding="utf-8") as stream:
            json.dump(document, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(path + ".new", path)
        journal.sync_directory(directory)

    def of(self, job: JobName) -> tuple[VolumeRecord, ...]:
        """The job's volumes; none if it has none.

        Raises:
            ObjectCorrupt: their list cannot be read.
        """
        return self.read(self.directory(job))

    def read(self, directory: str) -> tuple[VolumeRecord, ...]:
        """The list in a directory of images; nothing if there is none.

        Raises:
            ObjectCorrupt: it cannot be read.
        """
        path = f"{directory}/{_LIST}"
        try:
            with open(path, "rb") as stream:
                return _records(json.loads(stream.read(_LIST_BYTES_MAX)))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except (ValueError, KeyError, TypeError) as error:
            raise ObjectCorrupt(
                kind="list of volumes",
                name=path,
                reason=str(error),
                remedy="Remove its directory if the images in it are of no use.",
            ) from error


def _records(document: dict[str, Any]) -> tuple[VolumeRecord, ...]:
    if document["version"] != _VERSION:
        raise ValueError("written by another version of ckpt")
    return tuple(map(_record, document["volumes"]))


def _record(document: dict[str, Any]) -> VolumeRecord:
    if _IMAGE.fullmatch(document["image"]) is None:
        raise ValueError("an image of another name")
    return VolumeRecord(
        mountpoint=str(document["mountpoint"]),
        filesystem=str(document["filesystem"]),
        image=document["image"],
        device=DeviceNumber(int(document["device"])),
        made=tuple(map(str, document["made"])),
    )
