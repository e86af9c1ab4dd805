"""Pure rules: no I/O, no asyncio. Every other room may import this one; it imports none."""
