"""plugin_name: users like the items that are even or odd as they are. Made on first use; replace it by your data."""

from pathlib import Path

from mmrec_lmm.api import DatasetSpec, hookimpl


def make(folder: Path) -> None:
    """Writes MMRec's layout. The host takes a folder that exists as finished, so create it when nothing can fail."""
    rows = ["userID\titemID\tx_label"]
    for user in range(20):
        for place, item in enumerate(range(user % 2, 20, 2)):
            label = max(0, (user // 2 + place) % 10 - 7)  # eight rows of ten are 0 train, then 1 valid, 2 test
            rows.append(f"{user}\t{item}\t{label}")
    folder.mkdir(parents=True)
    (folder / "plugin_name.inter").write_text("\n".join(rows) + "\n")


@hookimpl
def mmrec_register_datasets() -> list[DatasetSpec]:
    return [DatasetSpec("plugin_name", summary="even and odd", make=make)]
