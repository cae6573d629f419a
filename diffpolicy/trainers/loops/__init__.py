"""The Lightning modules: collection, updates, evaluation."""
