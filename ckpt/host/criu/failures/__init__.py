"""The table of failures: from a line of CRIU's log to the cause in plain words and a remedy.

Rules: a new failure is a new row, with its real line in the test. The first row that fits a line counts, so that what
is special stands before what is general.
Source: seen with CRIU 4.1 or 4.2.1 on kernel 6.18; what the test has below "From the messages" is from CRIU's source,
version 4.2, and was not provoked.
"""

from __future__ import annotations

from typing import Final

from ckpt.host.criu.failures import files, images, kernel, places, sockets, tasks
from ckpt.host.criu.failures.row import Row

ROWS: Final[tuple[Row, ...]] = (
    *kernel.ROWS,
    *sockets.ROWS,
    *files.ROWS,
    *tasks.ROWS,
    *places.ROWS,
    *images.ROWS,
)
