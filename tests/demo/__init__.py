"""`make demo`: one container as a systemd unit, told in a terminal and checked as it is told.

stage.py is where it plays (a booted throwaway host, or this system), story.py what happens there.
"""
