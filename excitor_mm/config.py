"""The configuration of a whole run, as frozen dataclasses; the YAML files in configs/ spell it out.

No torch import here, so that `--help` is instant. jsonargparse checks choices, types, ranges and keys while parsing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from excitor_mm.errors import ConfigError
from excitor_mm.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

T = TypeVar("T")


@dataclass(frozen=True)
class LanguageConfig:
    """The frozen language model."""

    path: str = "smollm2-135m-instruct"
    """A default part (see `excitor-mm fetch-defaults`), a local transformers folder, or a Hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the frozen weights; trainable ones are always float32. auto: bfloat16 where the hardware computes it."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """bitsandbytes quantisation of the frozen weights (needs CUDA)."""


@dataclass(frozen=True)
class EncoderConfig:
    """One frozen vision encoder. Image size, mean, std and interpolation are read from the encoder itself."""

    library: Literal["timm", "open_clip"] = "timm"
    """Where the architecture comes from."""
    model: str = "efficientnet_lite0"
    """Its name in that library, e.g. ViT-L-14-336 (open_clip) or vit_small_patch14_dinov2 (timm)."""
    weights: str | None = "efficientnet-lite0"
    """A default part, a local file, a pretrained tag of the library, or null for random weights (tests)."""
    layers: list[int] | None = None
    """Layers whose tokens are used, e.g. [-4, -1]; null: the last one, after the final norm."""


@dataclass(frozen=True)
class ExcitorConfig:
    """The trainable blocks."""

    layers: NonNegativeInt | None = None
    """Number of topmost layers with an Excitor; null: all but the lowest two. 0, for LoRA alone: none."""
    prompts: PositiveInt = 30
    """K, learnable prompts per layer."""
    rank: PositiveInt = 16
    """r, rank of the query projection."""
    visual_rank: PositiveInt | None = 16
    """R, rank of the visual projections; null for full matrices."""
    gate_start: float = 0.5
    """First value of the gates, one per key head. 0 starts exactly at the base model, and learns to see last."""
    prompt_std: NonNegativeFloat = 1.0
    """Standard deviation of the first learnable prompts."""


TaskName = Literal["caption", "vqa", "scienceqa", "instructions"]
"""What samples are used for; see data/tasks.py."""


@dataclass(frozen=True)
class LoraConfig:
    """LoRA in the language model, beside the Excitor or instead of it; it gives up that values are never altered."""

    rank: NonNegativeInt = 0
    """0: no LoRA."""
    alpha: PositiveInt = 16
    """The change of a weight is scaled by alpha / rank."""
    dropout: ClosedUnitInterval = 0.0
    """Of LoRA's input, in training."""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Which linears of every layer: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other ranks by name or regular expression, as in PEFT, e.g. {v_proj: 4}."""


@dataclass(frozen=True)
class PromptConfig:
    """What the language model reads before the answer."""

    template: str = "{palette}\nCaption:"
    """`chat` (the language model's own), a name or a text with {question} and its kin, see templates.py."""
    palette_size: NonNegativeInt = 45
    """Number of words of the training answers that fill `{palette}`; used only if a template holds it."""
    palette_choice: Literal["frequent", "shuffled", "spread", "random"] = "frequent"
    """The most frequent words, in order or shuffled; or some of all usual words, evenly or at random."""
    system: str = ""
    """What stands before the first turn; in a chat template it replaces the template's own."""
    scienceqa: str = "QCM-A"
    """Format of ScienceQA problems: what is given, and what is answered; see data/scienceqa.py."""
    max_tokens: PositiveInt | None = None
    """Longest prompt with answer; longer contexts are shortened. null: as long as the language model reads."""


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources of samples."""

    shards: str
    """A folder, a brace list, or a URL."""
    task: TaskName = "caption"
    """What its samples are used for."""
    template: str | None = None
    """Prompt template of this task; null: prompt.template."""
    weight: PositiveFloat = 1.0
    """Its share of the steps and of the palette, relative to the other sources; unused in validation."""


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from and how images are varied."""

    train: str | list[SourceConfig] = "data/sample/train"
    """Training shards: a folder, a brace list, or a URL; or several sources, mixed by weight."""
    validation: str | list[SourceConfig] | None = None
    """Validation shards; the first source's score chooses best/. null: no validation, the last adapter is best."""
    task: TaskName = "caption"
    """What shards named by a text are used for."""
    draft: bool = False
    """Decode large JPEGs at a half, quarter or eighth while crops keep enough pixels: faster, not bit-equal."""
    features: str | None = None
    """Name of the folders beside the shards that `cache-features` wrote; null: encode images at every visit."""
    workers: NonNegativeInt = 2
    """Processes that read and decode, per rank."""
    lanes: PositiveInt = 16
    """Shards open at a time, over all ranks and workers: at most all, best a multiple of ranks x workers."""
    shuffle_buffer: NonNegativeInt = 1000
    """Samples held (undecoded) for shuffling, over all lanes."""
    max_bad_fraction: ClosedUnitInterval = 0.01
    """Stop when more than this share of the samples cannot be used."""
    crop_scale: tuple[ClosedUnitInterval, ClosedUnitInterval] = (0.9, 1.0)
    """Range of the area kept by the random resized crop in training."""
    flip: ClosedUnitInterval = 0.0
    """Probability of a horizontal flip in training; keep 0 where captions say left and right."""
    max_pixels: PositiveInt = 100_000_000
    """Larger images are refused before decoding."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high:
            raise ConfigError(f"data.crop_scale is {[low, high]}, expected two rising shares of the area above 0.")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    output: str = "runs/train"
    """Run folder: best/, last/, metrics.jsonl, config.yaml, checkpoints/."""
    start: str | None = None
    """Adapter folder to go on from, with its palette and the prompts of its tasks; null: fresh blocks."""
    stage: Literal["cross-entropy", "scst"] = "cross-entropy"
    """What is learnt: the captions or answers, or, from `start` on, what CIDEr rewards (see scst.py)."""
    scst_samples: PositiveInt = 5
    """Captions drawn of an image at each visit."""
    scst_baseline: Literal["samples", "greedy"] = "samples"
    """What a drawn caption's reward is held against: the mean of the image's others, or its greedy caption."""
    scst_temperature: PositiveFloat = 1.0
    """Captions are drawn, and learnt, with logits divided by it. Below 1, where too few draws are good."""
    answers: PositiveInt = 1
    """Right answers learnt of a sample at each visit, behind one prompt: 5 are all captions of a COCO picture."""
    steps: PositiveInt = 1000
    """Optimizer steps."""
    batch_size: PositiveInt = 32
    """Images a step over all ranks and accumulation."""
    accumulation: PositiveInt = 1
    """Forward passes that share a step, per rank."""
    learning_rate: NonNegativeFloat = 4e-3
    """Peak rate of AdamW (betas 0.9, 0.95)."""
    gate_learning_rate: NonNegativeFloat | None = None
    """Peak rate of the gates; null: the same."""
    weight_decay: NonNegativeFloat = 0.02
    """Not applied to the gates."""
    warmup_steps: NonNegativeInt = 20
    """Linear warm-up, then half a cosine to zero."""
    clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    label_smoothing: ClosedUnitInterval = 0.0
    """Probability mass spread over the vocabulary in the training loss."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    seed: int = 0
    """Of the first weights, the order of samples, crops and captions."""
    validate_every: PositiveInt = 100
    """Steps between two validations (loss, and the score of the task)."""
    patience: PositiveInt | None = None
    """Stop after this many validations without a better score; null: never."""
    save_every: PositiveInt = 100
    """Steps between two checkpoints to resume from."""
    keep: PositiveInt = 2
    """Latest checkpoints that are kept; the best adapter always is."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is NaN or infinite does: stop the run, or leave the step out."""
    shard_frozen: bool = False
    """Divide the frozen layers among the processes (FSDP2), where one cannot hold them."""
    log_every: PositiveInt = 10
    """Steps between two lines of metrics.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Extra loggers of accelerate; metrics.jsonl is always written."""


@dataclass(frozen=True)
class DecodingConfig:
    """How text is generated; stored in the adapter, may be overridden on the command line."""

    beams: PositiveInt = 3
    """1: greedy, or sampling."""
    max_new_tokens: PositiveInt = 30
    """Longest answer in tokens; the image and the prompt do not count."""
    min_new_tokens: NonNegativeInt = 0
    """Shortest answer in tokens."""
    sample: bool = False
    """Draw tokens instead of taking the likeliest."""
    temperature: PositiveFloat = 1.0
    """Of sampling."""
    top_p: ClosedUnitInterval = 1.0
    """Nucleus of sampling."""
    length_penalty: float = 1.0
    """Of beam search: above 0 favours longer answers."""
    repetition_penalty: PositiveFloat = 1.0
    """Above 1 discourages words already written, those of the prompt included."""

    def __post_init__(self) -> None:
        low, high = self.min_new_tokens, self.max_new_tokens
        if low > high:
            raise ConfigError(f"min_new_tokens is {low}, more than max_new_tokens, {high}.")


@dataclass(frozen=True)
class RunConfig:
    """Everything a training run depends on."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: list[EncoderConfig] = field(default_factory=lambda: [EncoderConfig()])
    excitor: ExcitorConfig = field(default_factory=ExcitorConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def training_sources(self) -> list[SourceConfig]:
        """One, or those of a mixture."""
        return self._sources(self.data.train)

    def validation_sources(self) -> list[SourceConfig]:
        """None, one or several."""
        return self._sources(self.data.validation)

    def templates(self) -> dict[str, str]:
        """Task -> prompt template; ConfigError where a task has two."""
        found: dict[str, str] = {}
        for source in [*self.training_sources(), *self.validation_sources()]:
            template = source.template or self.prompt.template
            first = found.setdefault(source.task, template)
            if first != template:
                raise ConfigError(f"Task {source.task} has the templates {first!r} and {template!r}: give it one.")
        return found

    def _sources(self, given: str | list[SourceConfig] | None) -> list[SourceConfig]:
        return [SourceConfig(given, self.data.task)] if isinstance(given, str) else given or []


@dataclass(frozen=True)
class Prompts:
    """The prompts of a training run, resolved; stored in the adapter. The last three are as in `PromptConfig`."""

    templates: dict[str, str]
    """Task -> prompt template."""
    palette: list[str] = field(default_factory=list)
    """Words that fill {palette} in templates."""
    system: str = ""
    scienceqa: str = "QCM-A"
    max_tokens: int | None = None


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """A nested dataclass from plain values, strictly typed.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=cls)
    try:
        return parser.instantiate(parser.parse_object({"value": dict(values)})).value
    except (ArgumentError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
