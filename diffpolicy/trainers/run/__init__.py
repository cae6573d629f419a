"""Starting and ending runs: devices, callbacks, loggers, signals, the command line."""
