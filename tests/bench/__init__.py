"""`make bench`: sdshim against io.containerd.runc.v2 on one booted host, strictly interleaved.

lives.py container lives, their latency and CPU; memory.py Pss; launcher.py what `start` costs;
floor.py the same steps without any shim; report.py the figures as tables and JSON.
recovery.py, `make recovery`, is its own program: how soon the daemon is back after its death.
exit_signal.py stands alone: it compares ways to learn of an exit.
"""
