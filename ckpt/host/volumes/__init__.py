"""Volumes: file systems of a job's own, whose files have the same identity on every host (docs/inodes.md).

loop.py       loop devices with reserved numbers
image.py      the file system in an image file
places.py     where one may be mounted
book.py       which jobs have which
mounting.py   mount and unmount
changing.py   new volumes in the place of former ones, and back
owning.py     from a job's start to its removal
dumping.py    copies under the freeze
bringing.py   back for a restore
"""
