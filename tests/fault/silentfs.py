#!/usr/bin/python3
"""A FUSE file system with nothing in it, over /dev/fuse, which takes some questions and never
answers them: who asks hangs in the kernel, and no signal ends that (the D of ps(1)).

    silentfs SOURCE PLACE -o OPTIONS     as mount.fuse3 calls it; SOURCE is OPERATION[@DEVICE]

OPERATION (`lookup`, `destroy`) is not answered. With a block device it is a fuseblk, whose
umount(2) waits for an answer; SIGTERM does not end the program then.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys

LOOKUP, FORGET, GETATTR, STATFS, INIT, OPENDIR = 1, 2, 3, 17, 26, 27
READDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = 28, 29, 36, 38, 42
NO_REPLY = (FORGET, INTERRUPT, BATCH_FORGET)
HEADER = struct.Struct("<IIQQIIIHH")
"""fuse_in_header of the kernel's fuse.h: length, opcode, unique, node, uid, gid, pid, …"""
TAKEN = "/tmp/silentfs.taken"
"""Made when a question is not answered."""
OPERATIONS = {"lookup": LOOKUP, "destroy": DESTROY}


def answer(opcode: int) -> tuple[int, bytes]:
    """(error, payload) to a question about the root folder, which is all there is."""
    if opcode == INIT:
        return 0, struct.pack("<IIIIHHIIHHI7I", 7, 31, 4096, 0, 8, 8, 4096, 1, 1, 0, 0, *[0] * 7)
    if opcode == GETATTR:
        facts = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 512, 0)
        return 0, struct.pack("<QII", 0, 0, 0) + facts
    if opcode == STATFS:
        return 0, bytes(80)
    if opcode == OPENDIR:
        return 0, bytes(16)
    if opcode in (READDIR, RELEASEDIR, DESTROY):
        return 0, b""
    return (errno.ENOENT if opcode == LOOKUP else errno.ENOSYS), b""


def serve(device: int, silent: int) -> None:
    """Until the file system is gone."""
    while True:
        try:
            question = os.read(device, 1 << 16)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):
                continue
            return  # ENODEV: unmounted
        _, opcode, unique, *_ = HEADER.unpack_from(question)
        if opcode == silent:
            os.close(os.open(TAKEN, os.O_WRONLY | os.O_CREAT))
        if opcode in NO_REPLY or opcode == silent:
            continue
        code, payload = answer(opcode)
        os.write(device, struct.pack("<IiQ", 16 + len(payload), -code, unique) + payload)


def main() -> int:
    """Mount, go into the background, serve."""
    operation, _, block = sys.argv[1].partition("@")
    device = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    kind, source = ("fuseblk", block) if block else ("fuse", "silentfs")
    libc = ctypes.CDLL(None, use_errno=True)
    words = (source.encode(), sys.argv[2].encode(), kind.encode())
    if libc.mount(*words, ctypes.c_ulong(0), data.encode()) != 0:
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        return 1
    if os.fork():
        os._exit(0)
    os.setsid()
    if block:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(nothing, fd)
    serve(device, OPERATIONS[operation])
    return 0


if __name__ == "__main__":
    sys.exit(main())
