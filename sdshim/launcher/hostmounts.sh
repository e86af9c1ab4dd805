# Sourced by a program of a unit that finds itself outside the host's mount namespace, where a
# drop-in (PrivateTmp=, ProtectSystem= …) has put it: begin again in the host's. What is mounted
# for a container must be seen by the OCI runtime, the daemon and containerd, and its paths are
# theirs.
# shellcheck shell=sh

# Where nobody may look at PID 1 (a drop-in took CAP_SYS_PTRACE) it stays as it is.
[ -e /proc/1/ns/mnt ] && exec nsenter --target 1 --mount -- "$0" "$@"
