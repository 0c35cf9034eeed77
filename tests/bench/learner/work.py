"""The step that both sides of `beside_trl.py` do.

TRL sees IMAGES images a prompt. Our clips have twice as many frames, because the tower merges
pairs of them: the same patches, and as many visual tokens.
"""

PROMPTS = 4
GROUP_SIZE = 8
IMAGES = 16
SIDE_PX = 112
"""64 patches of 14 px an image, 16 visual tokens."""
ANSWER_TOKENS = 32
LEARNING_RATE = 1e-4
QUESTION = "when does it happen"
THREADS = 2
