"""The commands: one file each; nothing imports them."""
