"""The schema registry: the only place that talks to it."""
