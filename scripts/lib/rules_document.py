"""Write docs/rules.md: every rule of ckpt/host/preflight/table.py, and what no rule can see."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from ckpt.host.preflight.rule import Rule, When
from ckpt.host.preflight.table import RULES
from ckpt.model.findings import Severity

PLACE = Path("docs/rules.md")

INTRO = """\
# What speaks against a dump, or the restore after it

<!-- Written by scripts/rules from ckpt/host/preflight/: change it there. -->

`ckpt check TARGET` asks these rules of every process before anything is frozen, and tells all that they find; `ckpt
dump` asks them first, and asks those again under the freeze whose answer may have changed. They were tried with real
processes and real dumps and restores (`tests/system/test_rules_*.py`), where a blocker's failed; what no machine at hand
has (GPUs, network file systems) is from the source that the rule names.

| severity | means |
|---|---|
| blocker | the dump fails, or the restore does, or the workload would be lost |
| warning | both work, and something is lost or needs care |
| info | good to know |

An *option* is ckpt's that deals with it: with it the finding is gone, or is no blocker any more.

"""

UNSEEN = """\
## What no rule can see

No file of /proc has these, and no call that one process may make about another (but numa_maps has the policies of
areas, at the price of a walk through all memory). A program that uses them has to
set them again after a restore, or to be told.

| what | after a restore |
|---|---|
| PDEATHSIG of a root process (`prctl(PR_SET_PDEATHSIG)`) | it is cleared, with a warning: the parent of a restored process is another one, and CRIU would let the signal kill it at once. Processes below the root keep theirs |
| Landlock | the sandbox is gone: the process may reach what it had given up |
| session keyring (`keyctl`) | the restored process has another one, without its keys |
| memory that may not become executable (`PR_SET_MDWE`) | it may again |
| what a memory error does (`PR_MCE_KILL`) | the default |
| NUMA policy of single areas (`mbind`) | the default; the policy of a whole process is a rule |
| a filter that notifies a supervisor (seccomp user notification) | the supervisor's descriptor cannot be dumped, which is a rule; where it is outside of the workload it is not seen, and the calls fail (ENOSYS) |

## What is lost always

It is true of every process, and so no rule tells it.

| what | after a restore |
|---|---|
| times of user and system, counters of faults and of bytes read and written | begin at zero, or at what the restore took |
| start time of the process | that of the restore |
| parent of a root process | ckpt's, which waits for it |
| timed waits of threads | go on, but for those that [clocks.md](clocks.md) names: these give EINTR |
| cgroups of single threads (version 1) | the thread is where its process is |

## What is set again

ckpt does what CRIU leaves out: CPU affinity, I/O priority, timer slack, coredump_filter and the niceness of autogroups.
CRIU keeps niceness, scheduling policy (but SCHED_DEADLINE), limits, capabilities, umask, signals, oom_score_adj,
no_new_privs, seccomp, THP's switch, the flag of subreapers, dumpable, and the stop of stopped processes.
"""

WHEN = {
    When.BEFORE: "before the freeze",
    When.ALWAYS: "before the freeze, and under it",
    When.CHECK: "by a check; a dump meets it by itself",
    When.MOMENT: "before the freeze, and under it, where it makes the dump try again",
}


def main() -> int:
    """Write the document, or say whether it is current."""
    parser = argparse.ArgumentParser(prog="scripts/rules")
    parser.add_argument("--check", action="store_true", help="say whether it is current, and write nothing")
    wanted = document(RULES)
    if parser.parse_args().check:
        if PLACE.exists() and PLACE.read_text(encoding="utf-8") == wanted:
            return 0
        print(f"{PLACE} is not current: run scripts/rules.", file=sys.stderr)
        return 1
    PLACE.write_text(wanted, encoding="utf-8")
    print(f"wrote {len(RULES)} rules to {PLACE}")
    return 0


def document(rules: Iterable[Rule]) -> str:
    """The whole of docs/rules.md."""
    rules = sorted(rules, key=lambda rule: (list(Severity).index(rule.severity), rule.name))
    rows = "".join(
        f"| [{rule.name}](#{rule.name}) | {rule.severity} | {_cell(_title(rule))} |\n" for rule in rules
    )
    overview = f"## All {len(rules)}\n\n| rule | severity | finds |\n|---|---|---|\n{rows}\n"
    return INTRO + overview + "".join(map(_section, rules)) + UNSEEN


def _section(rule: Rule) -> str:
    lines = [
        f"### {rule.name}\n",
        f"**{rule.severity}**: {_title(rule)}.\n",
        f"- Effect: {_sentence(rule.effect)}",
        f"- Remedy: {_sentence(rule.remedy) if rule.remedy else 'none'}",
        *([f"- Option: `{rule.option}`"] if rule.option else []),
        f"- Asked: {WHEN[rule.when]}.",
        f"- Source: {_sentence(rule.source)}",
    ]
    return "\n".join(lines) + "\n\n"


def _title(rule: Rule) -> str:
    return rule.title[:1].upper() + rule.title[1:].removesuffix(".")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
