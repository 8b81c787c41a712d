"""Why a dump, or the restore after it, would fail: told before anything is frozen.

Every rule is one function and one row: rule.py says what they are, table.py lists them, checking.py asks them, and
docs/rules.md is made from them.
"""
