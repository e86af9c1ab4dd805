/* subreaper PIDFILE RUNTIME ARGUMENT...: main process of an exec's unit (Type=notify).
 *
 * Run the OCI runtime's detached `exec --pid-file PIDFILE`, say READY=1 once the process runs,
 * wait for it, and end as it ended, with the same code or by the same signal. A runtime that fails
 * is a failed start: its status, no READY. 255: nobody knows how the process ended. Signals sent
 * here are passed on. subreaper.py is the same program for machines without a C compiler. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#define UNKNOWN 255

static int say_ready(const char *address) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t length = address ? strlen(address) : 0;
    if (length < 2 || length > sizeof to.sun_path) return -1;
    memcpy(to.sun_path, address, length);
    if (address[0] == '@') to.sun_path[0] = 0; /* abstract: its length is exact, no final zero */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sendto(fd, "READY=1", 7, MSG_NOSIGNAL, (void *)&to, sizeof to.sun_family + length);
    return fd;
}

static pid_t read_pid(const char *path) {
    char text[32] = "", proc[64];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    pid_t pid = read(fd, text, sizeof text - 1) > 0 ? atoi(text) : 0;
    close(fd);
    /* The exit hook kills what is left behind unless /proc/PID is newer than the pid file, but the
     * age of /proc/PID is that of an inode, made at a lookup and dropped at any time: hold it. */
    snprintf(proc, sizeof proc, "/proc/%d", (int)pid);
    if (pid > 0 && open(proc, O_PATH | O_CLOEXEC) >= 0) utimensat(AT_FDCWD, path, NULL, 0);
    return pid;
}

static int end_as(int status) {
    if (!WIFSIGNALED(status)) return WEXITSTATUS(status);
    sigset_t one;
    prctl(PR_SET_DUMPABLE, 0); /* no core of ours (RLIMIT_CORE=0 does not stop systemd-coredump) */
    signal(WTERMSIG(status), SIG_DFL);
    sigemptyset(&one);
    sigaddset(&one, WTERMSIG(status));
    raise(WTERMSIG(status));
    sigprocmask(SIG_UNBLOCK, &one, NULL);
    return 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
    if (argc < 3) return dprintf(2, "usage: subreaper PIDFILE RUNTIME ARGUMENT...\n"), 2;
    const char *address = getenv("NOTIFY_SOCKET");
    unsetenv("NOTIFY_SOCKET");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigset_t all, before;
    sigfillset(&all); /* what arrives stays pending until the process is known */
    sigprocmask(SIG_BLOCK, &all, &before);
    signal(SIGCHLD, SIG_DFL); /* were it ignored, the kernel would reap and tell nobody */

    pid_t pid = fork();
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, &before, NULL);
        execvp(argv[2], argv + 2);
        _exit(errno == ENOENT ? 127 : 126);
    }
    int status, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd); /* streams end with the process, not with us */
    /* Only the runtime is reaped here: a process that ends before it stays a zombie until then. */
    if (pid < 0 || waitpid(pid, &status, 0) != pid) return UNKNOWN;
    if (status) return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if ((pid = read_pid(argv[1])) <= 0) return UNKNOWN;

    int number, notify = say_ready(address), pidfd = syscall(SYS_pidfd_open, pid, 0);
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    /* For a process that is not our child: a child that ends when it has ended, with 255. */
    if (waitid(P_PID, pid, NULL, WEXITED | WNOHANG | WNOWAIT) && (pid = fork()) == 0)
        return poll(&end, pidfd >= 0, -(pidfd >= 0)), UNKNOWN;
    for (;;) {
        for (pid_t child; (child = waitpid(-1, &status, WNOHANG)) > 0;)
            if (child == pid) {
                /* systemd asks for the dead after it has looked for messages: who says READY
                 * between the two and ends is a failed start. End when it has been read. */
                for (int unread = 0; !ioctl(notify, TIOCOUTQ, &unread) && unread;) usleep(500);
                return end_as(status);
            }
        if ((number = sigwaitinfo(&all, NULL)) > 0 && number != SIGCHLD)
            syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0);
    }
}
