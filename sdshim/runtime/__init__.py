"""The OCI runtime's room: the only place that runs runc or crun, and that reads a bundle."""
