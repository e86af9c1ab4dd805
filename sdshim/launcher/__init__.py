"""What containerd and systemd run: the shim binary, the unit's sh lines. Standard library only."""
