"""The host's own things: files on /run, mounts, cgroups, processes by pidfd."""
