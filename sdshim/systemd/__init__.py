"""The door to systemd: D-Bus (`bus`, `signals`, `manager`), the fd store and the journal.

Imports `core` only; rooms beside it do not know it.
"""

import sys

# dbus-next looks for GLib when it is imported, for a kind of connection that is not used here: a
# tenth of all that the daemon imports, and clients wait for that when it restarts.
sys.modules.setdefault("gi", None)  # type: ignore[arg-type]
