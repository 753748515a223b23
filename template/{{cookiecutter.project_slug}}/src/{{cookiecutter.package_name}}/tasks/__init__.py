"""Lightning modules: a network with its loss, metrics and optimizer."""
