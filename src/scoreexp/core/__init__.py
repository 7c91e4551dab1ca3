"""What everything may use: errors, parameter types, random streams, tensor shapes, batches, value ranges."""
