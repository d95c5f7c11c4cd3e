"""The programs that drive one client each, in the environment that client was installed into."""
