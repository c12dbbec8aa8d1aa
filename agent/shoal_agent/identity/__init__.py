"""Who this board is: its key, its certificate, and how it gets and renews them. X.509 only in `child`'s process."""
