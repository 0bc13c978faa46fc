"""Dependent stores. Each knows its database and nothing of Kafka's groups or YAML; siblings are blind to each other."""
