"""The machine: atomic files, locks, untrusted files, signals, processes, devices."""
