"""What an image set holds, read for people: its tasks, descriptors, sockets, pipes and memory.

    contents.py   all of one set          tasks.py        tasks and their threads
    values.py     text and flags          open_files.py   open files of every kind
    sockets.py    sockets                 pipes.py        pipes and FIFOs

Rules: no pages file is needed. What an image does not say stays empty, and a kind of file that is not known here is
shown as such: CRIU goes on faster than we do.
"""

from ckpt.host.criu.reading.contents import read_contents

__all__ = ["read_contents"]
