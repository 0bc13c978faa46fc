"""What makes it a service: one lane a store, supervised together. Knows ports, never a database."""
