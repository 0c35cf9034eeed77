"""What models really forward: hooks on the tower and on the language model.

Both sides of `beside_trl.py` use it, in processes of their own; nothing of ours is imported. Calls
with gradients are counted apart: TRL samples with the model that it trains, and only training is
compared.
"""

from typing import Any

import torch


class Counts:
    """Patches and tokens that went through a model since it was watched."""

    def __init__(self) -> None:
        self.vision_patches = 0
        self.llm_token_forwards = 0
        self.sampling_vision_patches = 0
        self.sampling_token_forwards = 0

    def watch(self, model: Any, *, trains: bool = False) -> None:
        """Count every call of `model.visual` and `model.language_model`.

        Args:
            model: the inner model of a Hugging Face checkpoint.
            trains: all calls are training's: those of a frozen tower have no gradient.
        """

        def tower(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            patches = args[0] if args else kwargs["hidden_states"]
            self._add(patches=len(patches), trained=trains or torch.is_grad_enabled())

        def text(_: Any, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            batch, length = kwargs["inputs_embeds"].shape[:2]
            self._add(tokens=batch * length, trained=trains or torch.is_grad_enabled())

        model.visual.register_forward_pre_hook(tower, with_kwargs=True)
        model.language_model.register_forward_pre_hook(text, with_kwargs=True)

    def _add(self, *, trained: bool, patches: int = 0, tokens: int = 0) -> None:
        if trained:
            self.vision_patches += patches
            self.llm_token_forwards += tokens
        else:
            self.sampling_vision_patches += patches
            self.sampling_token_forwards += tokens

    def per_step(self, steps: int) -> dict[str, float]:
        """All counts, an optimizer step."""
        return {name: count / steps for name, count in vars(self).items()}
