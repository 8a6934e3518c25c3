"""From the position in the data to the packed tensors of one rank's micro-batches."""
