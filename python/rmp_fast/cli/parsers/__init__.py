"""Options of every command, one file each; nothing here imports more than the standard library."""
