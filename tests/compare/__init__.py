"""The same scenarios against the stock runc shim and against sdshim, answer by answer."""
