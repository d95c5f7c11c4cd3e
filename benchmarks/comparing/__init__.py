"""What `compare.py` runs: the peers and ours, the work they are given, what drives them, and what is made of it."""
