"""What `chaos.py` runs: clients that behave, and faults that others cause."""
