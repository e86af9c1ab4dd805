# Sourced by `create` and `exec`, which set state, stdin, stdout and stderr; no process is started.
#   STDxxx  `-` for /dev/null, `=` to keep what the unit gave, or a path: FIFO or existing file
# The daemon (or systemd, for it) holds the other end of each FIFO: no open here waits for a client.
# shellcheck shell=sh disable=SC2034,SC2154

die() {
    status=$1
    shift
    # stderr may already be the container's
    printf '%s\n' "$*" 2>/dev/null >>"$state/stderr" || printf '%s\n' "$*" >&2
    exit "$status"
}

# Faults are told while stderr is still STATE_DIR/stderr. $1 is the runtime.
check() {
    case $1 in
        */*)
            [ -e "$1" ] || die 127 "exec: \"$1\": stat $1: no such file or directory"
            [ -f "$1" ] && [ -x "$1" ] || die 126 "exec: \"$1\": permission denied"
            ;;
        *)
            command -v -- "$1" >/dev/null 2>&1 ||
                die 127 "exec: \"$1\": executable file not found in \$PATH (PATH is $PATH)"
            ;;
    esac
    for path in "$stdin" "$stdout" "$stderr"; do
        case $path in
            - | =) ;;
            *) [ -e "$path" ] || die 1 "open $path: no such file or directory" ;;
        esac
    done
}

# Called with SDSHIM_SEALED set: stdin is a copy of the runtime's program to run it from, and the
# variable a link to /proc/self/fd/9 that bears its name (runtime/sealed.py). The runtimes pass on
# no descriptor but 0 to 2, to hooks neither.
take_program() {
    exec 9<&0 </dev/null
    if [ -x "$SDSHIM_SEALED" ]; then program=$SDSHIM_SEALED; else exec 9<&-; fi
}

# The runtime's environment has nothing of the unit's: OCI hooks inherit it (systemd.exec(5)).
# NOTIFY_SOCKET is left to the caller.
forget() {
    unset LISTEN_FDS LISTEN_PID LISTEN_FDNAMES LISTEN_PIDFDID FDSTORE \
        WATCHDOG_USEC WATCHDOG_PID INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID \
        MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE MAINPID MANAGERPID MANAGERPIDFDID PIDFILE \
        SDSHIM_TOKEN SDSHIM_SEALED LIBMOUNT_FORCE_MOUNT2 CREDENTIALS_DIRECTORY RUNTIME_DIRECTORY \
        STATE_DIRECTORY CACHE_DIRECTORY LOGS_DIRECTORY CONFIGURATION_DIRECTORY DEBUG_INVOCATION \
        REMOTE_ADDR REMOTE_PORT TRIGGER_UNIT TRIGGER_PATH TRIGGER_TIMER_REALTIME_USEC \
        TRIGGER_TIMER_MONOTONIC_USEC SERVICE_RESULT EXIT_CODE EXIT_STATUS
}

# With -C what has become a file since `-p` was asked is neither emptied nor written to.
open_streams() {
    set -C
    case $stdin in
        -) exec </dev/null ;;
        =) ;;
        *) exec <"$stdin" ;;
    esac
    case $stdout in
        -) exec >/dev/null ;;
        =) ;;
        *) if [ -p "$stdout" ]; then exec >"$stdout"; else exec >>"$stdout"; fi ;;
    esac
    case $stderr in
        -) exec 2>/dev/null ;;
        =) ;;
        "$stdout") exec 2>&1 ;;
        *) if [ -p "$stderr" ]; then exec 2>"$stderr"; else exec 2>>"$stderr"; fi ;;
    esac
}
