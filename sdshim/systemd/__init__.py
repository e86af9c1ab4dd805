"""The door to systemd: D-Bus (`bus`, `signals`, `manager`), the fd store and the journal.

Imports `core` only; rooms beside it do not know it.
"""
