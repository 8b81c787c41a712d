"""A program made of two snippets: the first builds up some state, the second tells whether it is all still there.

usage: snippets.py CONTROL SETUP PROBE

Both are files of Python. They share their globals, and find here what such snippets need. CONTROL is a directory for
orders.py: "probe" runs the second snippet, which leaves in `lost` what is not as it was, "" for nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from orders import Answer, serve

TOOLS = (ctypes, fcntl, mmap, os, select, signal, socket, struct, subprocess, sys, threading, time, Path)


def main() -> None:
    control, setup, probe = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
    libc.syscall.restype = ctypes.c_long
    known: dict[str, object] = {tool.__name__: tool for tool in TOOLS}
    known |= {"libc": libc, "folder": control, "held": {}, "lost": ""}
    code = compile(Path(probe).read_text(), probe, "exec")
    exec(compile(Path(setup).read_text(), setup, "exec"), known)

    def obey(_order: str, _count: int) -> Answer:
        known["lost"] = ""
        exec(code, known)
        return {"lost": known["lost"]}

    serve(control, obey)


if __name__ == "__main__":
    main()
