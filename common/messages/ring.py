"""Every wire type of the ring, in travel order: prompt → sample → verdict → group → replica.

Answers themselves stand in `samples`, what a weight transfer says in `common.weights.messages`.

Only the standard library and pydantic are imported here, so that any process can read a message.
All models are frozen, refuse unknown fields and NaN/inf, and travel as JSON. Golden files pin each
one in `tests/golden/messages`, and in `tests/golden/stream_entries` what lies in Redis, with its
numbers packed (`arrays`); changing a field means raising `SCHEMA_VERSION`. A new field that is left
out where it says nothing (`ClipRef.window_s`) changes no message of before: no new version.
"""

from typing import Annotated, Literal

from pydantic import FailFast, Field, model_validator

from common.messages.arrays import Int32Array
from common.messages.base import Message, is_none
from common.messages.samples import Sample, Sampling

SCHEMA_VERSION: Literal[4] = 4

Mode = Literal["answer", "think"]
Task = str
Strategy = Literal["none", "mixed", "downscale", "anchor", "shaping", "sft"]
"""How GT enters a group (SPEC B1): none = GRPO, shaping = TempSamp-R1, sft = GT answers alone."""
ThinkInjection = Literal["bare", "splice", "none"]
GroundingReward = Literal["iou", "iou+wasserstein"]
"""Of time spans: IoU of the unions, or the set reward tiou + twass (SPEC C)."""
ShapedPart = Literal["iou", "sum"]
"""What shaping bends of the set reward."""
AnswerStyle = Literal["json_list", "tagged_json_list"]
"""How a row writes its answer, if not as a sentence in tags: `[[7.0, 11.0]]`, in tags or not."""
Decoder = Literal["decord", "pyav"]


# --- learner → rollout ------------------------------------------------------------------------


Window = tuple[Annotated[float, Field(ge=0)], float | None]
"""Start and end in seconds since the first frame of a file; without an end, up to the file's."""


class ClipRef(Message):
    """Names the exact pixels of a clip: both sides decode it to equal bytes
    (`common.video.frames`)."""

    uri: str
    """Path of the video file, as both services see it."""
    sha256: str
    """Hex digest of the file's bytes."""
    decoder: Decoder
    """Library that reads the pixels; both sides use this one."""
    source_fps: Annotated[float, Field(gt=0)]
    """Frames per second of the file; the average if its frames are unevenly spaced."""
    total_frames: Annotated[int, Field(ge=1)]
    frame_indices: tuple[int, ...]
    """Sampled source frames, ascending, an even count."""
    frame_times_s: tuple[float, ...]
    """When each sampled frame is shown, seconds since the first frame of the file, or since the
    start of the window."""
    frame_hw: tuple[int, int]
    """Height and width in pixels after resizing, multiples of the model's patch factor."""
    sampling: str
    """Fingerprint of the sampling parameters that chose the indices and the size."""
    window_s: Annotated[Window | None, Field(exclude_if=is_none)] = None
    """The part of the file that is the clip, as the row asks for it; None is all of it, and then
    the field does not travel."""

    @model_validator(mode="after")
    def _window_has_a_length(self) -> "ClipRef":
        if self.window_s is not None and self.duration_s <= 0:
            start_s, end_s = self.window_s
            raise ValueError(
                f"window_s: found {start_s} to {end_s} s, wanted a start before its end"
            )
        return self

    @model_validator(mode="after")
    def _one_time_a_frame(self) -> "ClipRef":
        if len(self.frame_times_s) != len(self.frame_indices):
            raise ValueError(
                f"{len(self.frame_times_s)} frame times for {len(self.frame_indices)} frames"
            )
        return self

    @property
    def duration_s(self) -> float:
        """Length in seconds of the file, or of what it has of the window."""
        file_s = self.total_frames / self.source_fps
        if self.window_s is None:
            return file_s
        start_s, end_s = self.window_s
        return (file_s if end_s is None else min(end_s, file_s)) - start_s

    @property
    def num_source_frames(self) -> int:
        """Frames that the clip spans; sampling takes the first and the last one of a window."""
        if self.window_s is None:
            return self.total_frames
        return self.frame_indices[-1] - self.frame_indices[0] + 1


class SpansTarget(Message):
    """Ground truth of temporal grounding: one or several `(start_s, end_s)`."""

    spans: Annotated[tuple[tuple[float, float], ...], Field(min_length=1), FailFast()]
    style: Annotated[AnswerStyle | None, Field(exclude_if=is_none)] = None
    """How the row that asks for them writes them; None, and then it does not travel:
    `<answer> 7.0 to 11.0 </answer>`."""


class Highlight(Message):
    """One highlighted moment and its saliency."""

    time_s: Annotated[float, Field(ge=0)]
    score: float


class HighlightsTarget(Message):
    """Ground truth of highlight detection."""

    highlights: Annotated[tuple[Highlight, ...], Field(min_length=1), FailFast()]


class TextTarget(Message):
    """Ground truth in the published text form, such as `<answer> 7.0 to 11.0 </answer>`."""

    text: str


Target = SpansTarget | HighlightsTarget | TextTarget


class TextPart(Message):
    """A text piece of a chat message."""

    type: Literal["text"] = "text"
    text: str


class VideoPart(Message):
    """The place of the clip in a chat message."""

    type: Literal["video"] = "video"


ContentPart = Annotated[TextPart | VideoPart, Field(discriminator="type")]


class ChatMessage(Message):
    """One turn of the chat template."""

    role: Literal["system", "user", "assistant"]
    content: tuple[ContentPart, ...]


class Grading(Message):
    """How a prompt's answers are judged in its phase, where a run has phases (learner.phases)."""

    strategy: Strategy
    format_weight: Annotated[float, Field(ge=0)]
    think_injection: ThinkInjection


class PromptRequest(Message):
    """A prompt to answer `num_samples` times; the learner's feed makes it, a replica claims it."""

    schema_version: Literal[4] = SCHEMA_VERSION
    prompt_id: str
    sequence: Annotated[int, Field(ge=1)]
    """Position in the learner's feed; also in the stream, which makes feeding idempotent."""
    row_id: str
    epoch: Annotated[int, Field(ge=0)]
    mode: Mode
    task: Task
    clip: ClipRef
    messages: tuple[ChatMessage, ...]
    target: Target
    num_samples: Annotated[int, Field(ge=1)]
    """Policy samples wanted: group size, less one when a GT row is injected."""
    sampling: Sampling
    min_version: Annotated[int, Field(ge=0)]
    """Oldest policy version whose samples would still be fresh when they are trained on."""
    grading: Annotated[Grading | None, Field(exclude_if=is_none)] = None
    """Only of runs with phases: it does not travel without."""

    @property
    def run_tag(self) -> str:
        """Of the run that feeds it: what `prompt_id` begins with."""
        return self.prompt_id.partition("-")[0]


# --- rollout → reward → rollout ---------------------------------------------------------------


class Scored(Message):
    """A reward and its parts (for example iou, iou_shaped, format)."""

    kind: Literal["scored"] = "scored"
    reward: float
    parts: dict[str, float]


class Unscored(Message):
    """The grader broke or could not be reached: never a zero."""

    kind: Literal["unscored"] = "unscored"
    reason: str


Verdict = Annotated[Scored | Unscored, Field(discriminator="kind")]


# --- rollout → learner ------------------------------------------------------------------------


class Timings(Message):
    """Where a group's time went, in seconds."""

    decode_s: float
    generate_s: float
    score_s: float


class ScoredGroup(Message):
    """All answers to one prompt with their verdicts, policy samples first, an injected one last."""

    schema_version: Literal[4] = SCHEMA_VERSION
    prompt_id: str
    sequence: Annotated[int, Field(ge=0)] = 0
    """Of the request it answers: its prompt may have been asked again since. 0 outside a ring."""
    row_id: str
    epoch: int
    mode: Mode
    clip: ClipRef
    prompt_token_ids: Int32Array
    """The expanded prompt exactly as the engine ran it, visual placeholders included."""
    num_visual_tokens: Annotated[int, Field(ge=0)]
    grid_thw: tuple[int, int, int]
    """Patch grid of the clip (time, height, width), before spatial merging."""
    samples: tuple[Sample, ...]
    verdicts: tuple[Verdict, ...]
    replica: str
    timings: Timings
    strategy: Annotated[Strategy | None, Field(exclude_if=is_none)] = None
    """Of its prompt's grading; None, and then it does not travel: the run's, shared.strategy."""

    @model_validator(mode="after")
    def _one_verdict_a_sample(self) -> "ScoredGroup":
        if len(self.samples) != len(self.verdicts):
            raise ValueError(f"{len(self.verdicts)} verdicts for {len(self.samples)} samples")
        return self

    @property
    def oldest_version(self) -> int | None:
        """Oldest policy version that wrote a token of this group; None without policy samples."""
        return min((span.version for s in self.samples for span in s.version_spans), default=None)


class DeadLetter(Message):
    """A message the ring gave up on; the learner drops its prompt and counts it."""

    prompt_id: str
    """Empty when the message was too broken to say."""
    error: str
    attempts: Annotated[int, Field(ge=0)]
    """Replicas that failed at it or died over it; 0 for a group that the learner could not use."""
    replica: str
    """Who failed last, or made a group that cannot be used; `learner`: one that is unreadable."""
    body: str
    """The message as it was."""


# --- rollout → registry, learner: what a replica is ----------------------------------------------


class HeldWeights(Message):
    """Digests of the streams that stand complete in a receiver's staging."""

    frozen: str | None = None
    trained: str | None = None


class ReplicaIdentity(Message):
    """Answer of GET /v1/identity: proves to be a replica of ours before it is told a token."""

    replica: str
    url: str
    """Where this replica believes to be reached."""
    proof: str
    """Hex HMAC-SHA256 of nonce and url under the token asked for; empty without one."""


ReplicaPhase = Literal["starting", "syncing", "serving", "draining", "broken"]
"""starting: the engine loads · syncing: waits for its first weights · serving · draining: finishes
what is in work · broken: new weights were half applied, the process is about to end."""


class ReplicaStatus(Message):
    """A replica's entry in the registry, renewed before its lease ends."""

    replica: str
    url: str
    phase: ReplicaPhase
    version: int | None
    """Verified policy version, None before the first transfer."""
    run_tag: str | None
    """Of the run that made its weights, None for the checkpoint it loaded."""
    generation: int | None
    """Weight group it has joined."""
    held: HeldWeights = HeldWeights()
    """What a transfer to it may count from."""
    pause_ms: float | None = None
    """How long generation stood still for the last version."""
    num_workers: Annotated[int, Field(ge=1)]
    """Ranks it needs in a weight group: tensor x pipeline x data parallel."""
    completed_groups: int
    failed_prompts: int
    generated_tokens: int


# --- anybody → rollout: answers outside the ring (evaluation, probes) ----------------------------


class GenerateRequest(Message):
    """Body of POST /v1/generate."""

    clip: ClipRef
    messages: tuple[ChatMessage, ...]
    num_samples: Annotated[int, Field(ge=1, le=1024)] = 1
    sampling: Sampling = Sampling()


class GeneratedAnswer(Message):
    """One answer with its text."""

    sample: Sample
    text: str
    token_ends: tuple[int, ...] = ()
    """[len(sample.token_ids)] characters of `text` up to and with each token; a stop token adds
    none. Empty where the sender does not know."""

    @model_validator(mode="after")
    def _one_end_a_token(self) -> "GeneratedAnswer":
        if self.token_ends and len(self.token_ends) != len(self.sample.token_ids):
            raise ValueError(
                f"{len(self.token_ends)} token ends for {len(self.sample.token_ids)} tokens"
            )
        return self


class GenerateResponse(Message):
    """Answers to one prompt; what the learner needs to score them again comes along."""

    prompt_token_ids: Int32Array
    num_visual_tokens: int
    grid_thw: tuple[int, int, int]
    answers: tuple[GeneratedAnswer, ...]
