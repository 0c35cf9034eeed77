"""What is kept of a run for who watches it: step dumps and their replay, charts."""
