"""The last rung: a file system of ours shows files under their recorded inode numbers, on a device of its own.

    choosing.py        which files may go this way, and which workload must not
    view.py            the controller's side: start the server, and hold the mount namespace
    server_process.py  the server's two processes
    answering.py       how one request of the kernel is answered
    wire.py            the structures on /dev/fuse
    living.py          which workloads live in such a namespace, and how CRIU dumps them

Rules:
- One file of the file system is bound over each path, in a mount namespace that nobody but the workload lives in.
- The data never comes this way: the kernel passes reads, writes and mappings through to the file itself.
- The device is not the recorded one. Whoever compares both numbers, as sqlite does, sees another file.
- Nothing is imported here: the server's processes start through this package.
"""
