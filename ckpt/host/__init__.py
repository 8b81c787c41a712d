"""THIS machine: cgroups, /proc, clocks, inodes, CRIU, namespaces."""
