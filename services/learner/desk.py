"""Rank 0's desk: everything of a run that only one rank may touch.

Redis is driven from the learner's synchronous loop through one asyncio runner; feed and intake sit
on it. The desk also holds the run: a lease in Redis against a second learner elsewhere, a lock on
the run folder against one on this machine.
"""
