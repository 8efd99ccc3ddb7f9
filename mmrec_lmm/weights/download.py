"""Where an encoder's pretrained files are: given by the user, in the cache folder, in a Python package that installs
them, or downloaded into the cache folder.

A file is used only with the expected content: the SHA-256 that its authors publish or, if they publish none, that of
the first file, which is recorded beside it. Nothing here imports torch, but where such a file is first used.
"""

import importlib.metadata
import logging
from collections.abc import Callable
from pathlib import Path

from ..cache import home
from ..disk.reading import check_readable
from ..downloads.fetching import offline, shown
from ..downloads.files import NotDownloaded, RemoteFile, bring, check
from ..errors import NoAccess, WeightsMissing
from ..formatting import first_few
from ..plugin.specs import WeightFile

logger = logging.getLogger(__name__)

_CHECKPOINTS = (".pt", ".pth", ".safetensors", "pytorch_model.bin")  # ends of names


def find_weights(file: WeightFile, *, encoder: str, given: Path | str | None = None) -> Path:
    """The path of a file of weights or of a vocabulary.

    `given` is the user's `--weights`: the file itself, whatever its name, or a folder that may hold it under its own.
    Otherwise it is `<home>/weights/<encoder>/<name>`, or that of the file's package, or downloaded to the former if
    need be and if possible.
    Raises WeightsMissing (how to get it, and its place) and DataError (another hash than the published or the recorded
    one).
    """
    if given:
        check_readable(Path(given))
    if given and not Path(given).exists():
        raise WeightsMissing(f"{encoder}: --weights {given}: no such file or folder; {_how_to_get(file, encoder)}")
    place = place_of(file, encoder)
    path = present(file, encoder=encoder, given=given)
    taken = path or place
    if given and taken not in (Path(given), Path(given) / file.name) and Path(given) != place.parent:
        logger.info("%s: no %s in %s; it is taken from %s", encoder, file.name, given, taken.parent)
    remote = RemoteFile(file.name, (file.url,), file.sha256 or "")
    if path is None:
        if file.package and not file.url:
            raise WeightsMissing(
                f"{encoder}: {file.name} isn't here{_found_instead(file)}; {_how_to_get(file, encoder)}"
            )
        _refuse_offline(file, encoder)
        try:
            bring(
                remote,
                place,
                who=encoder,
                otherwise="name one that you trust by --weights PATH",
                refuse=_refuse_junk(file),
            )
        except NotDownloaded as error:
            raise WeightsMissing(
                f"{encoder}: {file.name} isn't here and couldn't be downloaded ({error}); {_how_to_get(file, encoder)}"
            ) from None
        except NoAccess as error:
            raise WeightsMissing(
                f"{encoder}: {file.name} isn't here; {error}; or {_how_to_get(file, encoder)}"
            ) from None
        return place
    if path == _packaged(file):
        again = f"{_install(file)} --force-reinstall"
    elif path == place:
        again = "delete it to get it again"
    else:
        again = f"get {shown(file.url)} again" if file.url else f"leave --weights out, and {_install(file)}"
    remedy = f"{again}, or name another file by --weights PATH"
    check(remote, path, remedy=remedy, record=path == place, refuse=_refuse_junk(file))
    return path


def given_weights(given: Path | str, *, encoder: str) -> Path:
    """The file that the user's `--weights` names, for an encoder whose weights nobody publishes. Raises WeightsMissing
    if it isn't a file."""
    if not Path(given).is_file():
        raise WeightsMissing(
            f"{encoder}: --weights {given}: no such file; its weights aren't published: name a file of yours, or "
            "leave --weights out"
        )
    return Path(given)


def present(file: WeightFile, *, encoder: str, given: Path | str | None = None) -> Path | None:
    """The path that `find_weights` would check, without reading it; None if that would download. Raises NoAccess."""
    places = [place_of(file, encoder)]
    if given:
        places = [Path(given), Path(given) / file.name, *places]
    for place in places:
        check_readable(place)
    return next((place for place in places if place.is_file()), None) or _packaged(file)


def place_of(file: WeightFile, encoder: str) -> Path:
    """Where a file is looked for and downloaded to: <home>/weights/<encoder>/<name>."""
    return home() / "weights" / encoder / file.name


def _packaged(file: WeightFile) -> Path | None:
    """The file where its Python package, of whichever version, has installed it; nothing of the package is executed."""
    for path in _files_of(file.package):
        if path.name == file.name and path.is_file():
            return path
    return None


def _found_instead(file: WeightFile) -> str:
    """What the file's package has in its place, for a message."""
    name = _distribution(file.package)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f": the package {name} isn't installed"
    kind = f"*{Path(file.name).suffix}"
    folders = {path.parent for path in _files_of(file.package)}
    others = sorted(path.name for folder in folders for path in folder.glob(kind))
    return f": the package {name} {version} has {first_few(others) or f'no {kind}'} instead"


def _files_of(package: str) -> list[Path]:
    try:
        listed = importlib.metadata.files(_distribution(package)) if package else None
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(path.locate())) for path in listed or ()]


def _distribution(package: str) -> str:
    return package.partition("==")[0]


def _install(file: WeightFile) -> str:
    return f"pip install {file.package}"


def _how_to_get(file: WeightFile, encoder: str) -> str:
    place = place_of(file, encoder)
    get = f"download {shown(file.url)} to {place}" if file.url else f"{_install(file)}, or put it into {place.parent}"
    return f"{get}, or name the file, or a folder that holds {file.name}, by --weights PATH"


def _refuse_junk(file: WeightFile) -> Callable[[Path], None] | None:
    """What raises DataError for a file that is no checkpoint, before its hash is trusted; None for vocabularies and
    the like. The names of torch and safetensors promise one."""
    if not file.name.endswith(_CHECKPOINTS):
        return None

    def refuse(path: Path) -> None:
        from .formats import read_checkpoint  # imports torch, at a file's first use alone

        read_checkpoint(path)

    return refuse


def _refuse_offline(file: WeightFile, encoder: str) -> None:
    if name := offline():
        raise WeightsMissing(f"{encoder}: {file.name} isn't here and {name} is set; {_how_to_get(file, encoder)}")
