"""The demo: a small shop on real servers that start and end with it."""
