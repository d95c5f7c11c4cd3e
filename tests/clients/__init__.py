"""The client matrix: real clients, steered one step at a time against a real server process."""
