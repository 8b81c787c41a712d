"""Networks of jobs' own: a network namespace, one interface in it, and its way to the host's network.

Rule: a namespace lives as long as a process in it, or a descriptor of it, and its interface and the host's side of
that with it: nothing has to be tidied up after a job, nor after a crash.
"""
