"""cache-features: encode every image of a run's shards once, in so many views; see data/features.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excitor_mm.adapter import fingerprint
from excitor_mm.config import RunConfig, SourceConfig
from excitor_mm.console import Progress, log
from excitor_mm.data.features import CachedTokens, Facts, feature_file, read_facts, write_features
from excitor_mm.data.images import load_image
from excitor_mm.data.pipeline import draw_pixels
from excitor_mm.data.samples import Sample
from excitor_mm.data.shards import expected_samples, list_shards
from excitor_mm.data.stream import EvaluationStream, read_stream
from excitor_mm.errors import DataError
from excitor_mm.language import choose_device
from excitor_mm.vision.tower import VisionTower, load_tower


@dataclass(frozen=True)
class _Job:
    """One file to be written."""

    path: Path
    shard: str
    view: int
    facts: Facts


def cache_features(
    config: RunConfig, *, name: str, views: int = 1, dtype: str = "float16", batch_size: int = 32
) -> list[Path]:
    """Encode the training shards in `views` views and the validation shards, without crops and flips, in one.

    Files that exist are left as they are, so an interrupted run goes on. Under `accelerate launch` the processes
    share the files.

    Args:
        config: of the run that will read the tokens.
        name: of the folder beside the shards, the run's `data.features`.
        views: random crops and flips of each training image.
        dtype: "float16", "bfloat16" or "float32".
        batch_size: images at a time.

    Returns:
        All files, whoever wrote them.

    Raises:
        ConfigError: remote shards.
        DataError: files of another configuration under the same name, or shards that cannot be read.
    """
    from accelerate import PartialState

    state = PartialState(cpu=choose_device(config.train.device).type == "cpu")
    tower = load_tower(config.vision).to(state.device)
    drawn, plain = (replace(run_facts(config, tower, training=t), dtype=dtype) for t in (True, False))
    train, held_out = _shards(config.training_sources()), _shards(config.validation_sources())
    wanted = [(shard, view, drawn) for shard in train for view in range(views)]
    wanted += [(shard, 0, plain) for shard in held_out]
    jobs = [_job(shard, name, view, facts) for shard, view, facts in wanted]
    for job in jobs:
        if job.path.exists() and read_facts(job.path) != job.facts:
            raise DataError(f"{job.path} is of another configuration: delete its folder, or give another name.")
    missing = [job for job in jobs if not job.path.exists()][state.process_index :: state.num_processes]
    with Progress("encoding", len(missing), "files") as bar:
        for job in missing:
            _encode(job, tower, config, batch_size)
            bar.advance()
    state.wait_for_everyone()
    return [job.path for job in jobs]


def _job(shard: str, name: str, view: int, facts: Facts) -> _Job:
    path = feature_file(shard, name, view)
    return _Job(path, shard, view, replace(facts, shard_bytes=Path(shard).stat().st_size))


def run_facts(config: RunConfig, tower: VisionTower, *, training: bool) -> Facts:
    """What a run's visual tokens depend on; in float32, and without the size of the shard."""
    data = config.data
    return Facts(
        vision_fingerprint=fingerprint(tower.named_parameters()),
        encoders=len(tower.encoders),
        crop_scale=data.crop_scale if training else None,
        flip=data.flip if training else 0.0,
        seed=config.train.seed,
        max_pixels=data.max_pixels,
        draft=data.draft and training,
        dtype="float32",
        shard_bytes=0,
    )


def _shards(sources: Sequence[SourceConfig]) -> list[str]:
    """Each shard once, whatever tasks it serves."""
    return list(dict.fromkeys(shard for source in sources for shard in list_shards(source.shards)))


def cached_tokens(
    config: RunConfig, source: SourceConfig, tower: VisionTower, *, training: bool
) -> CachedTokens | None:
    """The cache of a source that `data.features` names, checked against the run; None without one.

    Raises:
        ConfigError: it is of other encoders, crops or flips.
        DataError: it is missing or damaged.
    """
    if config.data.features is None:
        return None
    return CachedTokens(list_shards(source.shards), config.data.features, run_facts(config, tower, training=training))


def check_cache(config: RunConfig, tower: VisionTower) -> None:
    """Raises what `cached_tokens` would raise for any source of the run; tells of training that repeats its crops."""
    for source in config.training_sources():
        cached = cached_tokens(config, source, tower, training=True)
        if cached is not None and (config.data.flip or config.data.crop_scale != (1.0, 1.0)):
            _tell_of_repeated_crops(config, source, cached.views)
    for source in config.validation_sources():
        cached_tokens(config, source, tower, training=False)


def _tell_of_repeated_crops(config: RunConfig, source: SourceConfig, views: int) -> None:
    from accelerate import PartialState

    state = PartialState(cpu=choose_device(config.train.device).type == "cpu")
    share = source.weight / sum(other.weight for other in config.training_sources())
    samples = expected_samples(source.shards)
    visits = round(config.train.steps * config.train.batch_size * share / samples, 1) if samples else 0.0
    if visits > views and state.is_main_process:
        log(
            f"Training visits each image {visits} times, but {config.data.features} beside {source.shards} holds "
            f"{views} views: crops repeat, and captions may be worse; cache more with --views."
        )


@dataclass(frozen=True)
class _Prepare:
    """The transform of a stream: a sample to its key and its pixels in one view."""

    transform: Callable[[Any], list[Tensor]]
    enough: int | None
    view: int
    facts: Facts

    def __call__(self, sample: Sample, epoch: int) -> tuple[str, list[Tensor]] | None:
        if sample.image is None:
            return None
        image = load_image(sample.image, self.facts.max_pixels, self.enough)
        return sample.key, draw_pixels(image, self.transform, self.facts.seed, self.view, sample.key)


def _encode(job: _Job, tower: VisionTower, config: RunConfig, batch_size: int) -> None:
    """Write one file; its tokens wait in memory. Samples without an image need none."""
    device, dtype = next(tower.parameters()).device, getattr(torch, job.facts.dtype)
    transform = tower.transform(job.facts.crop_scale, job.facts.flip)
    enough = tower.enough(config.data.crop_scale) if job.facts.draft else None
    prepare = _Prepare(transform, enough, job.view, job.facts)
    stream = EvaluationStream([job.shard], prepare, list, batch_size=batch_size)
    tokens: dict[str, list[Tensor]] = {}
    for item in read_stream(stream, config.data.workers):
        for record in item.bad:
            log(f"bad sample {record.key} in {record.shard}: {record.reason}")
        shown = [made for made in item.batch or [] if made is not None]
        if not shown:
            continue
        keys, pixels = zip(*shown, strict=True)
        found = tower.encode([torch.stack(group).to(device) for group in zip(*pixels, strict=True)])
        for row, key in enumerate(keys):
            tokens[key] = [part[row].to("cpu", dtype).clone() for part in found]
    write_features(job.path, tokens, job.facts)
