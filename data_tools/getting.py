"""Get a public data set: its files from a folder of the user's, the cache, or where they are published; then build it.

Downloads lie in <home>/downloads/<data set>/ and are used with the content that their authors' hash names, or else with
that of the first download. What can't be downloaded may be put there by hand.
"""

import logging
import shutil
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mmrec_lmm.cache import hash_file, home, locked, read_json
from mmrec_lmm.config.choices import SplitRule
from mmrec_lmm.downloads.fetching import offline, shown
from mmrec_lmm.downloads.files import NotDownloaded, RemoteFile, bring, check
from mmrec_lmm.errors import DataError, NoAccess
from mmrec_lmm.plugin.names import is_within

from .building import MANIFEST, Report, build
from .images.sources import refuse_bomb
from .published import IMAGE_FEATURES, Counts, PublishedDataset, PublishedFile
from .sources import LAYOUTS
from .writing import check_free

logger = logging.getLogger(__name__)


def get_dataset(
    dataset: PublishedDataset,
    out: Path,
    *,
    given: Path | None = None,
    mirror: str | None = None,
    image_features: bool = False,
    strict: bool = False,
    core: int | None = None,
    min_rating: float | None = None,
    split: SplitRule | None = None,
    split_seed: int = 0,
    raw_text: bool = False,
    force: bool = False,
) -> Report | None:
    """Make the data set `out` of the files that `get_files` gets; None if these options have made it before.

    `core` None is the data set's own; the other options are those of `build`, which also says what is raised.
    """
    chosen: dict[str, Any] = {
        "core": dataset.core if core is None else core, "min_rating": min_rating, "split": split,
        "split_seed": split_seed, "raw_text": raw_text,
    }  # fmt: skip
    recorded = {"get": dataset.name, "image_features": image_features, "strict": strict}
    if not force and _made_by(out / MANIFEST) == chosen | recorded:
        return None
    check_free(out.absolute(), out.name, force)  # now, not after hours of downloads
    paths = get_files(dataset, parts={IMAGE_FEATURES} if image_features else (), given=given, mirror=mirror)
    layout = LAYOUTS[dataset.layout]
    files = layout.find(_unpacked(paths, dataset))
    if files is None:
        raise DataError(f"{paths[0].parent}: expected {layout.files}, got none in {', '.join(p.name for p in paths)}")
    report = build(
        layout.read(files, strict=strict), out, source=dataset.layout, options=recorded, force=force, **chosen
    )
    found = Counts(report.users, report.items, report.interactions)
    if dataset.counts not in (None, found) and core is None and min_rating is None:
        logger.warning(
            "%s: %s were expected, and it has %s: another edition of the files, or lines were skipped",
            dataset.name,
            dataset.counts,
            found,
        )
    return report


def _made_by(manifest: Path) -> object:
    """The options that a data set was built with; None without a manifest."""
    if not manifest.is_file():
        return None
    content = read_json(manifest)
    return content.get("options") if isinstance(content, dict) else None


def _unpacked(paths: Sequence[Path], dataset: PublishedDataset) -> list[Path]:
    """The files; a zip is replaced by its content, which is unpacked into the cache each time."""
    found: list[Path] = []
    for path in paths:
        if path.suffix != ".zip":
            found.append(path)
            continue
        folder = home() / "downloads" / dataset.name / "unpacked"
        with locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                with zipfile.ZipFile(path) as archive:
                    entries = archive.infolist()
                    refuse_bomb(path, sum(entry.file_size for entry in entries))
                    outside = [entry.filename for entry in entries if not is_within(entry.filename.rstrip("/"))]
                    if outside:
                        raise DataError(f"{path}: expected files within the archive, got {outside[0]!r}; don't use it")
                    archive.extractall(folder)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: it is encrypted
                raise DataError(f"{path}: expected a zip archive, got a damaged file or none ({error})") from None
        found += sorted(one for one in folder.rglob("*") if one.is_file())
    return found


def get_files(
    dataset: PublishedDataset, *, parts: Collection[str] = (), given: Path | None = None, mirror: str | None = None
) -> list[Path]:
    """The files of a data set, with its optional `parts`, in the order of its table.

    Each is taken from the folder `given`, from the cache, or from its addresses (with `mirror`, a base address, only
    from there). A file ending in .gz may lie unpacked in either folder. Raises DataError: what to download by hand, and
    where to put it; or another hash than the published or the recorded one.
    """
    if given is not None and not given.is_dir():
        raise DataError(f"--from {given}: no such folder")
    wanted = [file for file in dataset.files if not file.part or file.part in parts]
    paths = []
    for file in wanted:
        remote = RemoteFile(file.name, dataset.urls(file, mirror), file.digest)
        place = place_of(dataset, file)
        path = _present(file, place, given)
        if path is None:
            path = place
            try:
                if variable := offline():
                    raise NotDownloaded(f"{variable} is set")
                bring(remote, place, who=dataset.name, otherwise="put the one that you trust into a folder, --from DIR")
            except (NotDownloaded, NoAccess) as error:
                absent = [other for other in wanted if _present(other, place_of(dataset, other), given) is None]
                raise DataError(_by_hand(dataset, file, error, absent, mirror)) from None
        else:
            remedy = f"delete it and try again, or get it again from {' or '.join(map(shown, remote.urls))}"
            check(remote, path, remedy=remedy, record=path == place)
        _compare(file, path)
        paths.append(path)
    return paths


def place_of(dataset: PublishedDataset, file: PublishedFile) -> Path:
    """Where a file is downloaded to: <home>/downloads/<data set>/<name>."""
    return home() / "downloads" / dataset.name / file.name


def _present(file: PublishedFile, place: Path, given: Path | None) -> Path | None:
    """The file, or what is in it, in the user's folder or in the cache."""
    folders = [*([given] if given else []), place.parent]
    names = dict.fromkeys((file.name, file.name.removesuffix(".gz")))
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _compare(file: PublishedFile, path: Path) -> None:
    """Report where a file isn't the one that others have had: that decides nothing, as its authors may renew it."""
    if file.sha256 and path.name == file.name and (found := hash_file(path)) != file.sha256:
        logger.warning(
            "%s: sha256 %s, where %s found %s (its authors publish none): another edition, or not the right file",
            path,
            found,
            file.sha256_by,
            file.sha256,
        )


def _by_hand(
    dataset: PublishedDataset, file: PublishedFile, error: Exception, absent: list[PublishedFile], mirror: str | None
) -> str:
    """What to do without the server: every address, and the places to put the files."""
    folder = place_of(dataset, file).parent
    addresses = "\n".join(f"  {shown(url)}" for other in absent for url in dataset.urls(other))
    also = f" (--mirror {shown(mirror)})" if mirror else ""
    unpacked = (
        f". If you have it unpacked: mmrec-lmm data build {dataset.name} --from FOLDER"
        if file.name.endswith(".zip")
        else ""
    )
    return (
        f"{dataset.name}: {file.name} isn't here and couldn't be downloaded{also}: {error}\n"
        f"download by hand into {folder}, or into a folder that you name by --from DIR:\n{addresses}\n"
        f"({dataset.page} lists them), and type the same command again: it continues from those files"
        f"{unpacked}"
    )
