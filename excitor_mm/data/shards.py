"""Reading tar shards: which files a specification names, and the samples in one of them.

webdataset's own grouping silently merges or splits damaged samples and sleeps half a second on each, so the
grouping here is ours: what cannot be used is counted by reason, with shard and key, and nothing is lost in
silence. Only plain files inside a tar are ever read, into memory; nothing is extracted.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from excitor_mm.data.index import INDEX, parse_index, read_index
from excitor_mm.data.remote import CHECKSUM, URL_SCHEMES, is_url, open_remote, read_remote, shard_name
from excitor_mm.data.samples import BadSample, Sample, parse_sample
from excitor_mm.errors import DataError

MAX_MEMBER_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 2**20
_LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


@dataclass(frozen=True)
class BadRecord:
    """Something in a shard that could not be used."""

    shard: str
    key: str
    reason: str


def list_shards(spec: str | Sequence[str]) -> tuple[str, ...]:
    """The shards that a specification names, in order.

    Args:
        spec: a folder of shards, a tar file, a brace list such as `coco-{000000..000009}.tar`, several of them, or
            the same behind http(s), s3 or gs. A remote folder needs its index.json; the checksums in there are
            appended to its shards.

    Raises:
        DataError: nothing found, or a scheme that is not read (`pipe:` would run a command).
    """
    import braceexpand

    shards: list[str] = []
    for part in [spec] if isinstance(spec, str) else spec:
        try:
            names = list(braceexpand.braceexpand(part))
        except ValueError as error:
            raise DataError(f"{part!r} is not a brace list ({error}): write x-{{000000..000009}}.tar.") from error
        for name in names:
            scheme, colon, _ = name.partition(":")
            if colon and "/" not in scheme and not Path(name).exists():
                if scheme not in URL_SCHEMES:
                    known = ", ".join(URL_SCHEMES)
                    raise DataError(f"{name!r} has scheme {scheme!r}: shards are read from paths, {known} only.")
                shards.extend([name] if shard_name(name).endswith(".tar") else _remote_folder(name))
            elif Path(name).is_dir():
                shards.extend(_folder(Path(name)))
            elif Path(name).is_file():
                shards.append(name)
            else:
                raise DataError(f"{name!r} does not exist: give a folder of shards, tar files or URLs.")
    if not shards:
        raise DataError(f"{spec!r} holds no .tar file: pack one with `excitor-mm pack-coco`.")
    return tuple(shards)


def _folder(folder: Path) -> list[str]:
    if (folder / INDEX).exists():
        return [str(folder / shard.name) for shard in read_index(folder).shards]
    return sorted(str(path) for path in folder.glob("*.tar"))


def _remote_folder(url: str) -> list[str]:
    index = parse_index(read_remote(_remote_index(url)), url)
    return [f"{url.rstrip('/')}/{shard.name}{CHECKSUM}{shard.sha256}" for shard in index.shards]


def _remote_index(url: str) -> str:
    return f"{url.rstrip('/')}/{INDEX}"


def expected_samples(spec: str | Sequence[str], questions: bool = False) -> int | None:
    """The number of samples, or of questions, a folder's index promises; None where there is no index."""
    index = None
    if isinstance(spec, str) and is_url(spec) and not shard_name(spec).endswith(".tar"):
        index = parse_index(read_remote(_remote_index(spec)), spec)
    elif isinstance(spec, str) and (Path(spec) / INDEX).is_file():
        index = read_index(Path(spec))
    if index is None:
        return None
    return sum(shard.questions for shard in index.shards) if questions else index.samples


def read_shard(url: str, on_bad: Callable[[BadRecord], None]) -> Iterator[Sample]:
    """The samples of one shard, in order, with bounded memory.

    A sample is the run of neighbouring members with one key: the path up to the first dot of the file name.

    Args:
        url: a path or a URL from `list_shards`.
        on_bad: called for everything that cannot be used.

    Raises:
        DataError: the shard cannot be opened at all.
    """
    shard = shard_name(url) if is_url(url) else posixpath.basename(url)
    seen: set[str] = set()
    key, fields, flaw = "", dict[str, bytes](), ""

    def finish() -> Iterator[Sample]:
        if not key:
            return
        reason = flaw or ("not adjacent" if key in seen else "")
        seen.add(key)
        if reason:
            on_bad(BadRecord(shard, key, reason))
            return
        try:
            yield parse_sample(key, fields, shard)
        except BadSample as error:
            on_bad(BadRecord(shard, key, error.reason))

    with _open(url) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictTarInfo) as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all headers
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(
                            "the tar file ends inside a member"
                        )  # before it is skipped, block by block
                    if member.isdir():
                        continue
                    folder, name = posixpath.split(member.name)
                    stem, _, extension = name.partition(".")
                    member_key = posixpath.join(folder, stem)
                    if member_key != key:
                        yield from finish()
                        key, fields, flaw = member_key, {}, ""
                    extension = extension.lower()
                    if not member.isreg() or member.name.startswith("/") or ".." in member.name.split("/"):
                        flaw = "unsafe member"
                    elif member.size > MAX_MEMBER_BYTES:
                        flaw = "member too large"
                    elif extension in fields:
                        flaw = "duplicate member"
                    else:
                        content = tar.extractfile(member)
                        assert content is not None
                        fields[extension] = content.read()
            yield from finish()
        except (tarfile.TarError, EOFError, OSError):
            on_bad(BadRecord(shard, key, "truncated or corrupt tar"))


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header in the middle for the end of the archive; only a zero block is one. And it reads
    headers that go on in a member of their own, such as long names, whatever their length."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _LONG_HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.InvalidHeaderError("a header of many megabytes")  # type: ignore[attr-defined]
        return super()._proc_member(tar)  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _open(url: str) -> IO[bytes]:
    if is_url(url):
        return open_remote(url)
    try:
        return open(url, "rb")
    except OSError as error:
        raise DataError(f"{url} cannot be opened ({error.strerror}): check the path.") from error
