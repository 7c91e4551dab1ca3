"""From an observation to a restored image."""
