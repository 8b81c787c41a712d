"""CRIU: our own client of its RPC, its image files, its log; the one door to pycriu and protobuf.

    locate.py      where CRIU is                    pb.py         pycriu's message classes, nothing else
    request.py     what CRIU can be asked           outcome.py    what it answers, as our values
    launch.py      how its process is started       channel.py    one process and its socket
    worker.py      the conversation, with hooks     engine.py     dump, restore, features, version, cpuinfo
    log.py         its log, in bounded memory       causes.py     from a line of it to cause and remedy
    imagefile.py   image files <-> messages         images.py     what we read and write in an image set
    kdat.py        its cache of kernel features     netlock.py    its nftables tables

Rule: this package is imported where CRIU is used, not before: protobuf costs 40 ms of start-up.
"""
