#!/bin/sh
# A shell with children: a background child, and pipelines of children that come and go all the time.
#
# Usage: shell.sh LOG
#
# SIGUSR1 is counted; SIGTERM ends it with exit code 7. The background child writes to LOG.background.
set -u
log=$1
tick=0
signals=0

fail() {
    printf '{"tick": %d, "pid": %d, "error": "%s"}\n' "$tick" $$ "$1" >>"$log"
    exit 99
}

count_for_ever() {
    number=0
    while sleep 0.02; do
        number=$((number + 1))
        printf '{"tick": %d}\n' "$number" >>"$log.background"
    done
}

end() {
    # A signal to the whole process group has ended it already.
    kill "$background" 2>/dev/null
    wait "$background"
    exit 7
}

count_for_ever &
background=$!
trap 'signals=$((signals + 1))' USR1
trap end TERM

while :; do
    tick=$((tick + 1))
    smallest=$(seq "$tick" $((tick + 9)) | sort -rn | tail -n 1)
    [ "$smallest" = "$tick" ] || fail "the pipeline gave $smallest, not $tick"
    kill -0 "$background" || fail "the background child is gone"
    printf '{"tick": %d, "pid": %d, "background": %d, "signals": %d}\n' \
        "$tick" $$ "$background" "$signals" >>"$log"
    sleep 0.02
done
