"""Fuzzing: what the daemon reads, fed with bytes that nobody would send. `python -m tests.fuzz`."""
