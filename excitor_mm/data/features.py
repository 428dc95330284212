"""Visual tokens that were encoded once and lie beside the shards, so that training never runs the encoders.

    <shards>/coco-000000.tar
    <shards>/<name>/coco-000000.view-0.safetensors    each sample's tokens under "<encoder>/<key>", and `Facts`

A view is one random crop and flip of every image: view v holds what an epoch v without a cache would see, and epoch e
reads view e mod the number of views.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from excitor_mm.config import from_dict
from excitor_mm.data.samples import BadSample
from excitor_mm.data.shards import URL_SCHEMES
from excitor_mm.errors import ConfigError, DataError


@dataclass(frozen=True)
class Facts:
    """What the tokens depend on; in the metadata of every file."""

    vision_fingerprint: str
    """Of the encoders; see `adapter.fingerprint`."""
    encoders: int
    """Their number."""
    crop_scale: tuple[float, float] | None
    """Of the random crops; None: the encoders' own resize and centre crop."""
    flip: float
    """Probability of a horizontal flip."""
    seed: int
    """Of crops and flips."""
    max_pixels: int
    """Larger images were left out."""
    draft: bool
    """Whether large JPEGs were decoded at a fraction of their size."""
    dtype: str
    """Precision of the stored tokens."""
    shard_bytes: int
    """Size of the tar file, which changes when the shard is packed again."""


def feature_file(shard: str, name: str, view: int) -> Path:
    """Where a view of a shard's tokens lies.

    Raises:
        ConfigError: a remote shard.
    """
    if shard.partition(":")[0] in URL_SCHEMES:
        raise ConfigError(f"{shard} is remote: tokens are cached beside local shards, so copy the shards first.")
    path = Path(shard)
    return path.parent / name / f"{path.stem}.view-{view}.safetensors"


def write_features(path: Path, tokens: Mapping[str, Sequence[Tensor]], facts: Facts) -> None:
    """Write one view of one shard: key -> one float[N, V] for each encoder. It appears under its name when complete.

    Raises:
        DataError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    named = {f"{number}/{key}": t for key, parts in tokens.items() for number, t in enumerate(parts)}
    fresh = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(named, fresh, metadata={"facts": json.dumps(asdict(facts))})
        fresh.chmod(0o644)
        fresh.replace(path)
    except (OSError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written ({error}): free space or choose another place.") from error


def read_facts(path: Path) -> Facts:
    """What a file's tokens depend on.

    Raises:
        DataError: missing, damaged, or not ours.
    """
    with _open(path) as file:
        metadata = file.metadata() or {}
    try:
        return from_dict(Facts, json.loads(metadata["facts"]))
    except (KeyError, ValueError, ConfigError) as error:
        raise DataError(f"{path} holds no cached tokens ({error}): delete it and cache again.") from error


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: run `excitor-mm cache-features` with this configuration.") from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run `excitor-mm cache-features`.") from error


class CachedTokens:
    """Reads one sample's tokens; files are opened when first needed, in whichever process that is.

    Args:
        shards: from `list_shards`.
        name: of the folder beside them.
        wanted: what the run would compute; another seed and precision are accepted, and each shard has its own size.

    Raises:
        ConfigError: the tokens are of other encoders or other crops.
        DataError: missing or damaged files.
    """

    def __init__(self, shards: Sequence[str], name: str, wanted: Facts) -> None:
        self.views, self.encoders = 0, wanted.encoders
        while feature_file(shards[0], name, self.views).exists():
            self.views += 1
        self.files = {
            posixpath.basename(shard): [feature_file(shard, name, view) for view in range(max(1, self.views))]
            for shard in shards
        }
        if len(self.files) < len(shards):
            raise ConfigError("Two shards have the same file name, which cached tokens are found by: rename one.")
        for shard in shards:
            expected = replace(wanted, shard_bytes=Path(shard).stat().st_size)
            for path in self.files[posixpath.basename(shard)]:
                _check(path, read_facts(path), expected)
        self._opened: dict[Path, Any] = {}

    def __call__(self, shard: str, key: str, epoch: int) -> list[Tensor]:
        """One float[N, V] for each encoder.

        Args:
            shard: file name of the sample's shard.
            key: of the sample.
            epoch: chooses the view.

        Raises:
            BadSample: the sample had no usable image when its shard was cached.
        """
        path = self.files[shard][epoch % self.views]
        if path not in self._opened:
            self._opened[path] = _open(path)
        file = self._opened[path]
        try:
            return [file.get_tensor(f"{number}/{key}") for number in range(self.encoders)]
        except Exception as error:  # safetensors has one kind for everything
            raise BadSample("no cached tokens", f"{shard}: sample {key} has no tokens in {path}.") from error

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay in their process."""
        return {**self.__dict__, "_opened": {}}


def _check(path: Path, found: Facts, wanted: Facts) -> None:
    for name, meaning in (
        ("vision_fingerprint", "encoders"),
        ("crop_scale", "crops"),
        ("flip", "flips"),
        ("draft", "decoding"),
        ("shard_bytes", "shards"),
    ):
        got, expected = getattr(found, name), getattr(wanted, name)
        if got != expected:
            raise ConfigError(
                f"{path} holds tokens of other {meaning} ({name} {got}, this run: {expected}): "
                "cache again under another data.features, or change the configuration."
            )
