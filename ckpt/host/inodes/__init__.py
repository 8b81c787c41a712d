"""Files keep the identity that a workload saw: by being the same inodes still, or inodes with the same number.

    moved.py      a file whose identity changed, and the port of what can give the old one back
    pins.py       hard links made at the dump hold the very inodes; at the restore they are put back
    pinbook.py    which checkpoint needs which pins
    placing.py    ext4: a copy is made that has the number (goal.py), or the inode is used that has it
    contents.py   a saved content is written into the file that is there
    swapping.py   how a name comes to lead to another inode, and back; refilling.py: an inode to another content
    places.py     where a recorded path leads, opened so that nobody is led astray
    fuse/         the last way: a file system of ours shows the inode numbers, on another device
    ledger.py     what of it was done, so that it can be taken back, by this process or another

Rules:
- Nothing is claimed that was not compared: what a name leads to is asked after every change.
- A file that somebody else has open is left alone, and so is one that has names that are not known.
- What was done stands in the ledger before it is done.
"""
