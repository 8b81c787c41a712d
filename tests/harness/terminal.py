"""A pseudo-terminal that a program writes to, and what a person would see on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time

COLUMNS = 80
_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Terminal:
    """One side for the program, `program`; what it wrote is collected from the other."""

    def __init__(self) -> None:
        self._here, self.program = pty.openpty()
        fcntl.ioctl(self.program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.written = ""

    def await_text(self, text: str, timeout_s: float = 60) -> None:
        """Read until the text was written."""
        deadline = time.monotonic() + timeout_s
        while text not in self.written:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.written!r}"
            if select.select([self._here], [], [], left)[0]:
                self._read()

    def finish(self) -> None:
        """Read what is left, after the program has ended."""
        os.close(self.program)
        while self._read():
            pass
        os.close(self._here)

    def screen(self) -> tuple[list[str], bool]:
        """The lines that are not empty, and whether the cursor is shown."""
        lines, row, column, shown = [""], 0, 0, True
        for found in _SEQUENCE.finditer(self.written):
            text, argument, command = found[0], found[1], found[2]
            if text == "\r":
                column = 0
            elif text == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif command is None:
                line = lines[row].ljust(column)
                lines[row] = line[:column] + text + line[column + len(text) :]
                column += len(text)
            elif command == "A":
                row = max(0, row - int(argument or 1))
            elif command == "K":
                lines[row] = ""
            elif argument == "?25":
                shown = command == "h"
            else:
                assert command == "m", f"unknown: {text!r}"
        return [line for line in lines if line.strip()], shown

    def _read(self) -> bool:
        try:
            content = os.read(self._here, 1 << 16)
        except OSError:  # EIO: nobody holds the program's side any more
            return False
        self.written += content.decode()
        return bool(content)
