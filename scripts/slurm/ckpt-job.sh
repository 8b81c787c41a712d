#!/bin/bash
# A batch script for Slurm: its command is checkpointed, and goes on where it was after a preemption, a time limit, a
# requeue or the loss of its node, on whichever node comes next.
#
# Rules:
# - The command never runs twice at a time. Who runs it holds the job's lease in the shared directory; a guard beside it
#   renews the lease, and kills the command before the lease can be another's. Leases are compared by whether they
#   change, measured by each node's own clock: the nodes' clocks need not agree.
# - The lease is given back only after the last process of the command is gone.
# - Slurm copies a batch script: all of it stands in this one file, and is read before anything is started.
#
# Source: docs/slurm.md; slurm.conf(5), sbatch(1) of Slurm 22.05; boot clock: proc_uptime(5).
set -u

readonly usage="\
Usage: sbatch --requeue --signal=B:USR1@120 --open-mode=append [SBATCH-OPTIONS] \\
           ckpt-job.sh --shared DIR [--lease SECONDS] [RUN-OPTIONS] -- CMD [ARG]...

Runs CMD by 'ckpt run --resume' as job slurm-\$SLURM_JOB_ID. RUN-OPTIONS are those of 'ckpt run', such as
--every 10m (the default), --grace, --with-files, --tcp-established. docs/slurm.md says what the nodes need.

  --shared DIR     a directory that all nodes have at this path: checkpoints, signing key and leases are in it
  --lease SECONDS  how long a node must be silent until its job goes on elsewhere (default 60)

Exit codes: CMD's own. 75: it was checkpointed, and Slurm was asked to run it again.

Example: sbatch --requeue --signal=B:USR1@120 --open-mode=append ckpt-job.sh --shared /srv/ckpt -- ./solve mesh"

readonly run_again=75 usage_code=2
ckpt=${CKPT_PROGRAM:-ckpt}

say() { printf 'ckpt-job: %s: %s\n' "${SLURMD_NODENAME:-$HOSTNAME}" "$*" >&2; }
die() {
    say "$1"
    exit "${2:-$usage_code}"
}

# Seconds since boot, also those in which the machine was suspended; in `now`.
look_at_clock() {
    read -r now _ </proc/uptime
    now=${now%.*}
}

# When the process began, in ticks since boot: with it, a number that was given again is not taken for the same.
begin_of() {
    local fields
    read -r fields <"/proc/$1/stat" || return
    read -ra fields <<<"${fields##*) }"
    [[ ${fields[0]} != [ZX] ]] && echo "${fields[19]}"
} 2>/dev/null

# is_running PID [BEGIN]: with its beginning, another one that has got its number is not taken for it
is_running() {
    local begin
    [[ -n $1 ]] && begin=$(begin_of "$1") && [[ -z ${2-} || $begin == "$2" ]]
}

# ── The lease ─────────────────────────────────────────────────────────────────────────────────────────────
# Files 1, 2, 3 … in its directory; the highest counts, and none is removed: a number is given once. Each holds one
# line: "held NODE COUNT" · "released" · "finished CODE": CMD ended while Slurm did not answer.

newest_lease() { find "$lease" -name '[0-9]*' -printf '%f\n' 2>/dev/null | sort -n | tail -n 1; }

# write_lease FILE LINE: fails unless the line is where the other nodes see it. The shell alone would not say so: what
# a network file system has no room for is told at fsync(2) or close(2).
write_lease() { dd of="$1" conv=fsync status=none 2>/dev/null <<<"$2"; }

# Take the lease as soon as it is nobody's: `mine` is its number. Exits if CMD ended meanwhile.
take_lease() {
    local newest line former='' since told=no
    mkdir -p -m 700 "$lease" || die "$lease cannot be made" 1
    look_at_clock
    since=$now
    while true; do
        newest=$(newest_lease)
        line=
        [[ -z $newest ]] || read -r line 2>/dev/null <"$lease/$newest"
        look_at_clock
        if [[ $line == "finished "* ]]; then
            say "CMD ended on another node while Slurm did not answer there: exit code ${line#finished }"
            echo released >"$lease/$newest"
            rm -f -- "$lease/wanted"
            exit "${line#finished }"
        fi
        # Also an empty line is only believed when it stays: it may be on its way.
        [[ "$newest $line" == "$former" ]] || since=$now
        former="$newest $line"
        if [[ -z $newest || $line == released ]] || ((now - since > lease_s)); then
            # O_EXCL: of several that came to the same conclusion, one goes on.
            if (set -C && echo "held $HOSTNAME 0" >"$lease/$((${newest:-0} + 1))") 2>/dev/null; then
                mine=$lease/$((${newest:-0} + 1))
                rm -f -- "$lease/wanted"
                return
            fi
        elif [[ $told == no ]]; then
            say "waits: the lease is ${line:-unreadable}"
            : >"$lease/wanted"
            told=yes
        fi
        sleep 0.5
    done
}

# ── The guard ─────────────────────────────────────────────────────────────────────────────────────────────

# Leave the cgroups by which Slurm knows whom to signal: SIGTERM and SIGKILL are not for the guard or CMD.
leave_step() {
    local place kind options
    while read -r _ place kind options _; do
        if [[ $kind == cgroup2 || ($kind == cgroup && ,$options, == *,freezer,*) ]]; then
            echo 0 >"$place/cgroup.procs"
        fi
    done </proc/self/mounts
} 2>/dev/null

# Kill what there is of the job on this node, and return when it is gone.
kill_job() {
    local supervisor='' begin='' place gone=no
    read -r supervisor begin <"$local_folder/supervisor"
    if is_running "$supervisor" "$begin"; then
        kill -KILL "$supervisor"
        # What it was just starting ends with it, but not at the same instant.
        sleep 0.5
    fi
    while [[ $gone == no ]]; do
        gone=yes
        while read -r place; do
            read -r _ <"$place/cgroup.procs" || continue
            gone=no
            echo 1 >"$place/cgroup.kill" || xargs -r kill -KILL <"$place/cgroup.procs"
        done < <(find /sys/fs/cgroup -type d \( -path "*/ckpt/$job" -o -path "*/ckpt/$job/*" \))
        [[ $gone == yes ]] || sleep 0.1
    done
} 2>/dev/null

# Let a checkpoint that is under way come to its end, but not for ever.
end_supervisor() {
    local supervisor='' begin='' tries=0
    read -r supervisor begin <"$local_folder/supervisor"
    is_running "$supervisor" "$begin" && kill -TERM "$supervisor"
    while is_running "$supervisor" "$begin" && ((tries++ < grace_s * 5)); do
        renew_lease || return
        sleep 0.2
    done
} 2>/dev/null

# Write the next count into the lease. Fails when none could be written for half a lease: then it may soon be
# another's. `wanted`: another node waits. Only the writer touches the shared directory: it may hang.
renew_lease() {
    look_at_clock
    if ! is_running "$writer"; then
        if [[ -n $writer ]]; then
            wait "$writer"
            case $? in
                0) renewed=$begun ;;
                3) renewed=$begun wanted=yes ;;
            esac
        fi
        if ((now - begun >= lease_s / 10)) || [[ -z $writer ]]; then
            begun=$now count=$((count + 1))
            # A lease with a higher number is another's: then this one is lost, however that came.
            (
                [[ ! -e $lease/$((${mine##*/} + 1)) ]] && write_lease "$mine" "held $HOSTNAME $count" || exit 1
                [[ ! -e $lease/wanted ]] || exit 3
            ) &
            writer=$!
        fi
    fi
    ((now - renewed < lease_s / 2))
} 2>/dev/null

guard() {
    local writer='' begun renewed count=0 wanted=no asked=no result
    trap '' TERM INT HUP USR1 USR2
    leave_step
    look_at_clock
    begun=$now renewed=$now
    while is_running "$batch" "$batch_begin"; do
        if ! renew_lease; then
            : >"$local_folder/lost"
            kill_job
            # Last, as what it is written to may be in the directory that is not there.
            say "the lease could not be renewed for $((lease_s / 2)) s: CMD was killed, its checkpoints stay"
            exit 1
        fi
        if [[ $asked == no && $wanted == yes ]]; then
            kill -USR1 "$batch"
            say "another node wants to go on with the job" &
            asked=yes
        fi
        sleep 0.2
    done
    # Whoever writes itself down there later finds no folder, and ends.
    mv "$local_folder" "$local_folder.over"
    local_folder+=.over
    end_supervisor
    kill_job
    wait
    result=$(cat "$local_folder/result" 2>/dev/null)
    write_lease "$mine" "${result:-released}"
    rm -rf -- "$local_folder"
}

# ── The batch script ──────────────────────────────────────────────────────────────────────────────────────

# The fields that Slurm shows of the job; fails when it does not answer.
look_at_slurm() { shown=" $(timeout 10 scontrol -o show job "$SLURM_JOB_ID") " && [[ $shown == *" JobState="* ]]; } 2>/dev/null

# Ask Slurm to run the job again, unless it does so already, was told to cancel it, or has it elsewhere by now.
requeue() {
    look_at_slurm || { say "Slurm does not answer: nothing is requeued" && return; }
    [[ $shown == *" BatchHost=$SLURMD_NODENAME "* && $shown == *" Restarts=${SLURM_RESTART_COUNT:-0} "* ]] || return
    [[ $shown == *" JobState="@(RUNNING|TIMEOUT)" "* ]] || return
    say "$SLURM_JOB_ID is requeued, to go on from its newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
}

on_signal() {
    interrupted=yes
    if [[ -z ${supervisor-} ]]; then
        requeue
        exit "$run_again"
    fi
    if [[ $ending == no ]]; then kill -TERM "$supervisor"; fi
    ending=yes
} 2>/dev/null

on_guard_gone() {
    interrupted=yes
    : >"$local_folder/lost"
    kill_job
}

main() {
    local shared='' lease_s=60 grace_s=30 every=(--every 10m) run=()
    local supervisor='' ending=no interrupted=yes code guard_pid guard_begin shown tries=0
    trap on_signal USR1 TERM
    while [[ $# -gt 0 && $1 != -- ]]; do
        case $1 in
            --shared=* | --lease=* | --grace=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
            --shared) shared=${2-}; shift ;;
            --lease) lease_s=${2-}; shift ;;
            --name | --name=* | --detach | --on-term | --on-term=*) die "${1%%=*} is this script's own" ;;
            -h | --help) printf '%s\n' "$usage"; exit 0 ;;
            --every | --every=*) every=(); run+=("$1") ;;
            --grace)
                [[ ${2-} =~ ^([0-9]{1,5})([sm])$ ]] || die "--grace needs seconds or minutes, such as 90s or 2m"
                grace_s=${BASH_REMATCH[1]}
                [[ ${BASH_REMATCH[2]} == s ]] || grace_s=$((grace_s * 60))
                shift
                ;;
            *) run+=("$1") ;;
        esac
        shift
    done
    [[ $# -ge 2 ]] || die "there is no command after --; --help shows an example"
    shift
    [[ $shared == /* && -d $shared ]] || die "--shared needs a directory that all nodes have, by its full path"
    [[ $lease_s =~ ^[0-9]{1,5}$ && $lease_s -ge 10 ]] || die "--lease needs a number of seconds, 10 or more"
    [[ -n ${SLURM_JOB_ID-} ]] || die "this is a batch script for Slurm: submit it with sbatch"
    [[ $EUID == 0 ]] || die "CRIU needs root: see docs/slurm.md"

    job=slurm-$SLURM_JOB_ID lease=$shared/leases/slurm-$SLURM_JOB_ID batch=$BASHPID
    batch_begin=$(begin_of "$batch")
    export CKPT_KEYS=${CKPT_KEYS:-$shared/keys} CKPT_STORE=$shared/store
    take_lease
    local_folder=$(mktemp -d /run/ckpt-job.XXXXXXXX) || die "/run cannot be written to" 1
    # By way of a child that ends: the guard is nobody's but init's, so Slurm does not find it below this process.
    local functions=(say look_at_clock begin_of is_running leave_step kill_job end_supervisor write_lease renew_lease guard)
    export -f "${functions[@]}"
    export job lease mine batch batch_begin local_folder lease_s grace_s
    (setsid bash -c 'echo $$ >"$local_folder/guard"; guard' </dev/null &)
    until guard_pid=$(cat "$local_folder/guard" 2>/dev/null) && [[ -n $guard_pid ]]; do
        ((tries++ < 200)) || die "the guard did not start" 1
        sleep 0.05
    done
    guard_begin=$(begin_of "$guard_pid")
    # CMD is to find its environment as Slurm made it.
    export -n job lease mine batch batch_begin local_folder lease_s grace_s
    export -fn "${functions[@]}"

    (
        leave_step
        # Still there afterwards: then the guard, which takes the folder away first, has read all of it.
        echo "$BASHPID $(begin_of "$BASHPID")" >"$local_folder/supervisor" && [[ -e $local_folder/supervisor ]] || exit
        exec "$ckpt" run --name "$job" --resume "${every[@]}" --on-term checkpoint --grace "${grace_s}s" \
            "${run[@]}" -- "$@"
    ) &
    supervisor=$!
    trap on_guard_gone USR2
    (
        while is_running "$guard_pid" "$guard_begin"; do sleep 1; done
        # The guard ends after the batch script, too.
        is_running "$batch" "$batch_begin" && kill -USR2 "$batch" 2>/dev/null
    ) &
    # A signal ends a wait early.
    while [[ $interrupted == yes ]]; do
        interrupted=no
        wait "$supervisor"
        code=$?
    done
    kill_job
    # 143: no last checkpoint came about in time, so CMD got SIGTERM; there may be an older one.
    if [[ $code == "$run_again" || -e $local_folder/lost || ($ending == yes && $code == 143) ]]; then
        if [[ -e $local_folder/lost ]]; then rm -rf -- "$local_folder"; fi
        requeue
        exit $run_again
    fi
    look_at_slurm || echo "finished $code" >"$local_folder/result"
    exit "$code"
}

main "$@"
