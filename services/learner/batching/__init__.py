"""Groups of a step → what each rank forwards, and in which micro-batches."""
