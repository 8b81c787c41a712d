"""The virtual layer: tasks are shown other device and inode numbers than their files really have.

    table.py           which identity is shown for which
    filter.py          the seccomp filter that hands the stat calls of a task to a supervisor
    injection.py       puts the filter in processes that are stopped, and takes its listener out
    server.py          the controller's side of the supervisor
    server_process.py  the supervisor's two processes: one answers, one stands by
    answering.py       how one call is answered
    registry.py        which running workloads have a layer

Rule: nothing is imported here: the supervisor's processes start through this package.
"""
