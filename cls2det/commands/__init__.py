"""The commands: a file per command, and ``options.py`` with the record of options that each takes."""
