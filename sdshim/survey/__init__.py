"""What the operator's commands see: the node as systemd, the disk and containerd tell it.

Above the rooms of the middle row, beside `daemon`: nothing here asks the daemon for its memory, so
all works while it is stopped. Only `repair` changes anything.
"""
