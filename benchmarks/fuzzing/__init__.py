"""What `fuzz.py` sends, and how it judges what comes back."""
