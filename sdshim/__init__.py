"""sdshim: a containerd runtime-v2 shim for hosts run by systemd."""

__version__ = "0.1.0"
