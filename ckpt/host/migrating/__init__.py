"""This host in a migration, as the flows see it: what is written down, what is read, what is kept."""
