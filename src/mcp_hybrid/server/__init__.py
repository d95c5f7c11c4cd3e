"""The process: hardened worker, launch, drain."""
