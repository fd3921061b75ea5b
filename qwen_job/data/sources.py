"""Data by name: the data sets of hubs and the files of addresses, fetched once into a cache, and pinned to a run.

- ``local_data``: a run's settings with the files in place of the names, at the versions that the run began with
- ``fetch_data``: one name -> its files
- ``cached_data``: the same without a network, None if a file is missing

The cache (``CACHE/data/HUB/``) has a folder of files for each version, and a record for each name that was fetched:
which version it means here, and which files. So whatever was fetched once needs no network, and means the same until
someone asks for a newer version. A run keeps the records of its names in its sources.json: other attempts train on the
same version, whatever the cache holds by then.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from qwen_job.data.splits import CARD, choose
from qwen_job.errors import DataError, EnvironmentFault
from qwen_job.facts.data_names import DataName, is_name, parse, shown
from qwen_job.remote.addresses import Addresses
from qwen_job.remote.download import Download, file_fault, retried
from qwen_job.remote.hub import DATA_SET, Hub, RemoteFile
from qwen_job.remote.hub_huggingface import HuggingFace
from qwen_job.remote.hub_modelscope import ModelScope
from qwen_job.resources import user_cache
from qwen_job.run.config import TrainConfig
from qwen_job.run.pins import pin_at_any_revision, pin_key, read_pins, valid_record
from qwen_job.run.reading import read_object
from qwen_job.run.sections import DataFile, DataSpec
from qwen_job.storage import Notify, exclusive, write_json

_MOST_CARD = 4 << 20
_SPLITS = ("train", "eval")


class Source(NamedTuple):
    """A name of data, the revision that the user asked for, and the cache for its files."""

    text: str
    revision: str | None
    cache: Path

    @property
    def name(self) -> DataName:
        """What the name says.

        Raises:
            DataError: it is malformed.
        """
        try:
            return parse(self.text)
        except ValueError as error:
            raise DataError(str(error)) from None

    @property
    def key(self) -> str:
        """The name and the revision asked for, as a run's record lists it."""
        return pin_key(self.text, self.revision)


class Fetched(NamedTuple):
    """The files of a source in the cache, and the record that says which version they are."""

    files: list[Path]
    record: Mapping[str, Any]

    @property
    def version(self) -> str:
        """The commit, or what identifies the content."""
        return str(self.record["version"])


def cache_of(data: DataSpec, model_cache: Path | None) -> Path:
    """Return the cache for the sources of a run: data.cache_dir, else that of its models, else the user's."""
    return data.cache_dir or model_cache or user_cache()


def local_data(config: TrainConfig, log: Notify) -> TrainConfig:
    """Return the settings with files in the cache in place of names; fetch what is missing.

    Any number of processes and nodes may call it at once: the first does the work, and all see the same files.

    Raises:
        DataError: a name means no data, or other data than when the run began.
        EnvironmentFault: a hub is unreachable, or the cache cannot be written.
    """
    place, cache = config.folder.sources, cache_of(config.data, config.model.cache_dir)
    pins = {} if config.resume == "changed" else read_pins(place)
    spec, records = local_spec(config.data, cache, log, pins)
    if not records:
        return config
    if records != pins:
        write_json(place, {"version": 1, "sources": records})
    return config.model_copy(update={"data": spec})


def local_spec(
    spec: DataSpec, cache: Path, log: Notify, pins: Mapping[str, Any] | None = None
) -> tuple[DataSpec, dict[str, Any]]:
    """Return ``spec`` with the files in ``cache`` in place of names, and the record of each name.

    Raises:
        DataError, EnvironmentFault: as :func:`fetch_data`; the message names the field.
    """
    records, found = dict[str, Any](), dict[str, Any]()
    for split in _SPLITS:
        files: list[DataFile] = []
        for index, file in enumerate(getattr(spec, split)):
            if not file.source:
                files.append(file)
                continue
            source = Source(file.source, file.revision, cache)
            field = f"data.{split}[{index}]"
            try:
                fetched = fetch_data(source, log, pin=(pins or {}).get(source.key))
            except (DataError, EnvironmentFault) as error:
                raise type(error)(f"{field}: {error}") from error
            log(f"{field}: {describe(source, fetched)}")
            records[source.key] = fetched.record
            files += [DataFile(path=path, weight=file.weight) for path in fetched.files]
        found[split] = tuple(files)
    return spec.model_copy(update=found), records


def local_files(named: Iterable[str | Path], cache: Path | None, log: Notify, pins: Path | None = None) -> list[Path]:
    """Return paths as they are and, in place of names, their files; ``pins``: a run's record of versions."""
    files: list[Path] = []
    known = read_pins(pins) if pins else {}
    for one in named:
        if not is_name(str(one)):
            files.append(Path(one))
            continue
        source = Source(str(one), None, cache or user_cache())
        fetched = fetch_data(source, log, pin=pin_at_any_revision(known, source.text))
        log(describe(source, fetched))
        files += fetched.files
    return files


def cached_data(source: Source) -> Fetched | None:
    """Return the files of a source that was fetched before; None if one is missing. No network is used.

    Raises:
        DataError: the name is malformed.
    """
    return _in_cache(source, _read_record(source))


def fetch_data(
    source: Source, log: Notify, *, pin: Mapping[str, Any] | None = None, newer: bool = False, verify: bool = False
) -> Fetched:
    """Return the files of a source; download those that are missing.

    Args:
        source: the name, and where to keep its files.
        log: called with a line of text from time to time.
        pin: the record of the version to take; without one, the version in the cache, else the newest.
        newer: ask the hub for the newest version, whatever the cache holds.
        verify: check the files by hash, not only by size.

    Raises:
        DataError: no such data, no access, in a form that is not read, or changed since ``pin`` was made.
        EnvironmentFault: the hub is unreachable, a package is missing, the disk is full, or downloads are forbidden.
    """
    hub, known = _hub(source.name), pin or (None if newer else _read_record(source))
    if found := _in_cache(source, known, verify=verify):
        return found
    if hub.offline:
        raise EnvironmentFault(
            f"{shown(source.text)}: is not in the cache ({_base(source)}), and {hub.offline} forbids downloads; run "
            f"'{DATA_SET.command} {shown(source.text)} --cache {source.cache}' on a machine with internet access"
        )
    with exclusive(_base(source).with_name(f"{_base(source).name}.lock"), log):
        known = pin or (None if newer else _read_record(source))
        if found := _in_cache(source, known, verify=verify):
            return found
        commit = known.get("commit") if known else None if newer else _commit_in_cache(source, hub)
        record = _download(source, hub, commit, pin, log)
        if not pin:
            write_json(_record_file(source), record)
    return Fetched(_paths(source, record), record)


def describe(source: Source, fetched: Fetched) -> str:
    """Return a line about what was fetched: files, size, version and place."""
    sizes = [int(file["size"]) for file in fetched.record["files"]]
    count = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
    kind = "commit" if fetched.record.get("commit") else "version"
    what = f"{shown(source.text)}: {count}, {sum(sizes) / 1e6:,.1f} MB at {kind} {fetched.version}"
    return f"{what}, in {_folder(source, fetched.version)}"


def _hub(name: DataName) -> Hub:
    if name.kind == "huggingface":
        return HuggingFace(DATA_SET)
    return ModelScope(DATA_SET) if name.kind == "modelscope" else Addresses(name)


def _download(
    source: Source, hub: Hub, commit: str | None, pin: Mapping[str, Any] | None, log: Notify
) -> Mapping[str, Any]:
    """Download a source at ``commit``, else at the newest; return its record. With ``pin``, exactly its files."""
    name, asked = source.name, source.revision or hub.default_revision
    if name.on_hub and not commit:
        commit = retried(hub, lambda: hub.commit(name.name, asked, log), log)
    at = commit or asked
    try:
        listed = retried(hub, lambda: hub.list_files(name.name, at, log), log)
    except DataError as error:
        raise _changed(source, str(error)) if pin and "not found" in str(error) else error from None
    version = commit or _digest(listed)
    if pin and version != pin["version"]:
        _refuse_changed(source, pin, listed)
        version = str(pin["version"])
    download = Download(hub, name.name, at, _folder(source, version), log)
    paths = [str(file["path"]) for file in pin["files"]] if pin else _choose(source, listed, download, log)
    recorded = download.run([file for file in listed if file.path in set(paths)])
    files = [{"path": path, **recorded[path]} for path in paths]
    if pin and [file.get("sha256") for file in pin["files"]] != [file.get("sha256") for file in files]:
        raise _changed(source, f"version {version} now holds other bytes")
    return {"version": version, "commit": commit, "revision": asked, "endpoint": hub.endpoint, "files": files}


def _commit_in_cache(source: Source, hub: Hub) -> str | None:
    """Return the commit of another part of the same data set: its test rows may be among those of a later train."""
    base = _base(source)
    found = base.parent.glob(f"{glob.escape(base.name)}.*.json")
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        record = valid_record(read_object(path))
        if record and record.get("revision") == (source.revision or hub.default_revision):
            return record.get("commit")
    return None


def _choose(source: Source, listed: Sequence[RemoteFile], download: Download, log: Notify) -> list[str]:
    """Return the files that the source means; its README.md, which may list them, is fetched first."""
    paths = [file.path for file in listed]
    if not source.name.on_hub:
        return paths
    card = [file for file in listed if file.path == CARD and file.size <= _MOST_CARD]
    text = download.fetch(card)[0].read_text(encoding="utf-8", errors="replace") if card else ""
    chosen = choose(paths, source.name, text)
    if left := chosen.left_out:
        more = f" and {len(left) - 1} more files belong" if len(left) > 1 else " belongs"
        log(f"{source.text}: {left[0]}{more} to no split, and not used")
    return chosen.files


def _refuse_changed(source: Source, pin: Mapping[str, Any], listed: Sequence[RemoteFile]) -> None:
    """Refuse files that are missing, or others than those of ``pin`` by what the hub says of them."""
    there = {file.path: file for file in listed}
    for file in pin["files"]:
        now = there.get(str(file["path"]))
        if now is None:
            raise _changed(source, f"{file['path']} is gone")
        if not now.sha256 or (now.size, now.sha256) != (file["size"], file.get("sha256")):
            raise _changed(source, f"{now.path} is another file")


def _changed(source: Source, what: str) -> DataError:
    return DataError(
        f"{shown(source.text)}: has changed since this run began: {what}; restore it, write another output, or "
        "write train.resume: changed to train on what there is now"
    )


def _digest(listed: Sequence[RemoteFile]) -> str:
    """Return what identifies the content of a listing that names no commit."""
    facts = sorted([file.path, file.size, file.sha256 or file.git_sha1 or file.etag] for file in listed)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _base(source: Source) -> Path:
    """Return the path in the cache that the names of a source's folders, records and lock begin with."""
    name = source.name
    if name.on_hub:
        word = name.name.replace("/", "--")
    else:
        word = (
            f"{PurePosixPath(name.name.partition('?')[0]).name}-{hashlib.sha256(name.name.encode()).hexdigest()[:12]}"
        )
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in word)
    return source.cache.expanduser() / "data" / name.kind / plain


def _folder(source: Source, version: str) -> Path:
    base = _base(source)
    return base.with_name(f"{base.name}@{version}")


def _record_file(source: Source) -> Path:
    base, key = _base(source), hashlib.sha256(source.key.encode()).hexdigest()[:12]
    return base.with_name(f"{base.name}.{key}.json")


def _in_cache(source: Source, record: Mapping[str, Any] | None, *, verify: bool = False) -> Fetched | None:
    """Return the files of a record if all are in the cache with their sizes; with ``verify``, with their hashes."""
    if record is None:
        return None
    files = _paths(source, record)
    try:
        sound = not any(file_fault(path, facts, verify) for path, facts in zip(files, record["files"], strict=True))
    except OSError:
        return None
    return Fetched(files, record) if sound else None


def _paths(source: Source, record: Mapping[str, Any]) -> list[Path]:
    folder = _folder(source, str(record["version"]))
    return [folder / str(file["path"]) for file in record["files"]]


def _read_record(source: Source) -> Mapping[str, Any] | None:
    return valid_record(read_object(_record_file(source)))
