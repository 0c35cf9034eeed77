"""Trained groups as people read them: `KeptGroups(run).keep(groups, …)` → `<run_dir>/groups`.

    groups and advantages of a step -> texts, spans, log-probabilities, what was made of each

`tempsamp dash` shows them (`common/queue/kept_groups.py` has the lines). Rank 0 alone writes.
Nothing of the run comes back to them, and a picture never costs a run: what goes wrong is said once
and ends the keeping.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from common import config
from common.answers.reading import read_highlights, read_spans
from common.messages import HighlightsTarget, Sample, ScoredGroup, Target, Verdict
from common.model.folder import fetched
from common.queue.kept_groups import KeptAnswer, KeptGroup, file_of, kept_steps, packed
from common.rows import Row, query_of

logger = logging.getLogger(__name__)

MEGABYTE = 10**6
DECIMALS = 4
"""Of log-probabilities, nats."""


class KeptGroups:
    """The groups that a run keeps, in bounded room."""

    def __init__(
        self, run: config.Run, *, row_of: Callable[[str], Row], resumed_at: int | None
    ) -> None:
        """Drop what an earlier run, or steps that are done again, left behind.

        Args:
            run: the run.
            row_of: the row of an id: its query and its truth.
            resumed_at: step of the checkpoint; None for a fresh run.
        """
        self._run, self._row_of = run, row_of
        self._settings = run.learner.keep_groups
        self._pieces: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._tokenizer: Tokenizer | None = None
        try:
            for step, path in kept_steps(run.learner.run_dir).items():
                if step > (resumed_at or 0):
                    path.unlink()
                else:
                    self._sizes[step] = path.stat().st_size
            if self._settings.every:
                self._tokenizer = _tokenizer(run)
        except OSError as error:
            self._give_up(str(error))

    def keep(
        self,
        groups: Sequence[ScoredGroup],
        *,
        advantages: Sequence[Sequence[float | None]],
        step: int,
    ) -> None:
        """Write a step's groups, if it is due, and make room."""
        if self._tokenizer is None or step % self._settings.every:
            return
        try:
            content = packed(self._kept(groups, advantages=advantages, step=step))
            path = file_of(self._run.learner.run_dir, step)
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(path)
            self._sizes[step] = len(content)
            self._thin_out()
        except Exception as error:  # noqa: BLE001 - disks and third parties: a picture at most
            self._give_up(repr(error))

    def _kept(
        self,
        groups: Sequence[ScoredGroup],
        *,
        advantages: Sequence[Sequence[float | None]],
        step: int,
    ) -> list[KeptGroup]:
        assert self._tokenizer is not None
        rows = [self._row_of(group.row_id) for group in groups]
        samples = [sample for group in groups for sample in group.samples]
        texts = iter(self._tokenizer.decode_batch([list(s.token_ids) for s in samples]))
        self._learn_pieces(samples)
        return [
            self._group(group, row, [next(texts) for _ in group.samples], own, step=step)
            for group, row, own in zip(groups, rows, advantages, strict=True)
        ]

    def _group(
        self,
        group: ScoredGroup,
        row: Row,
        texts: Sequence[str],
        advantages: Sequence[float | None],
        *,
        step: int,
    ) -> KeptGroup:
        answers = zip(group.samples, texts, group.verdicts, advantages, strict=True)
        return KeptGroup(
            step=step,
            prompt_id=group.prompt_id,
            row_id=group.row_id,
            epoch=group.epoch,
            mode=group.mode,
            query=row.query or query_of(row.problem or "") or row.problem or "",
            target=row.target,
            clip=group.clip,
            strategy=group.strategy or self._run.shared.strategy,
            replica=group.replica,
            timings=group.timings,
            prompt_tokens=len(group.prompt_token_ids),
            answers=tuple(self._answer(*answer, target=row.target) for answer in answers),
        )

    def _answer(
        self,
        sample: Sample,
        text: str,
        verdict: Verdict,
        advantage: float | None,
        *,
        target: Target,
    ) -> KeptAnswer:
        marks = isinstance(target, HighlightsTarget)
        parser = self._run.shared.scoring.parser
        return KeptAnswer(
            provenance=sample.provenance,
            text=text,
            tokens=tuple(self._pieces[token] for token in sample.token_ids),
            logprobs=tuple(round(logprob, DECIMALS) for logprob in sample.logprobs),
            spans=() if marks else tuple(read_spans(text, parser=parser).used),
            marks_s=tuple(mark.time_s for mark in read_highlights(text)) if marks else (),
            finish_reason=sample.finish_reason,
            versions=sample.version_spans,
            verdict=verdict,
            advantage=advantage,
        )

    def _learn_pieces(self, samples: Sequence[Sample]) -> None:
        """Texts of tokens not seen before: answers use few of a vocabulary."""
        assert self._tokenizer is not None
        new = list({token for s in samples for token in s.token_ids} - self._pieces.keys())
        texts = self._tokenizer.decode_batch([[token] for token in new], skip_special_tokens=False)
        self._pieces.update(zip(new, texts, strict=True))

    def _thin_out(self) -> None:
        while (
            sum(self._sizes.values()) > self._settings.most_mb * MEGABYTE and len(self._sizes) > 1
        ):
            step = least_missed(list(self._sizes))
            file_of(self._run.learner.run_dir, step).unlink(missing_ok=True)
            del self._sizes[step]

    def _give_up(self, reason: str) -> None:
        self._tokenizer = None
        logger.warning(
            "groups are no longer kept for tempsamp dash (learner.keep_groups)",
            extra={"reason": reason},
        )


def least_missed(steps: Sequence[int]) -> int:
    """Which of ascending steps leaves the smallest hole for its age; never the first or the last.

    With two of them it is the first. So what is kept grows ever sparser towards the start, and the
    start itself stays, for it is what everybody compares with.
    """
    if len(steps) < 3:
        return steps[0]
    newest = steps[-1]
    holes: Mapping[int, float] = {
        step: (after - before) / (newest - step)
        for before, step, after in zip(steps, steps[1:], steps[2:], strict=False)
    }
    return min(holes, key=lambda step: (holes[step], step))


def _tokenizer(run: config.Run) -> Tokenizer | None:
    """Of the model that the run started from; None, said once, where it has none of this kind."""
    path: Path = fetched(run.shared.model, knob="shared.model").path / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing narrower
        logger.info("groups are not kept: no tokenizer", extra={"reason": str(error)})
        return None
