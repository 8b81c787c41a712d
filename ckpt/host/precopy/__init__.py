"""Reading the memory of running tasks in rounds, so that little is left to send when they are stopped.

    live.py              the rounds, and the last look at what CRIU has written
    reading.py           what is there now, space by space: tasks.py, areas.py, present.py, shared.py
    dumped.py            what CRIU has written
    comparing.py         what differs from what was sent: spool.py and table.py keep that, known.py what was there before
    sending.py           pages on their way out
    runs.py, calls.py    pages that follow one another; libc

Rule: numpy is imported here, which takes a tenth of a second: import these modules where they are used.
"""
