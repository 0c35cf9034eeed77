"""The model: what a micro-batch's tokens and clips become; one prompt pass a group."""
