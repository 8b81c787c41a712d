"""Files that travel with a migration: of each, only the blocks that the target lacks are sent.

blocks.py      the digests of a file's blocks
shipped.py     the source: passes while the workload runs, and one under the freeze
matching.py    which content a file of the source has
mapped.py      which files are written through memory
companions.py  the files that a database has beside it
open_files.py  which files a workload holds that the target may lack
received.py    the target: files put together from what is there and what comes
checking.py    what the source may say
writing.py     blocks of zeros are holes
"""
