"""What a migration's target has received: pages in rounds, image files at the end, and image sets made of both.

Rule: table.py needs numpy, whose import takes 0.1 s: this package is imported where a migration arrives, never at
the start of the command.
"""
