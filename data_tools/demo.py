"""The demo data set: a small synthetic shop in which content decides who likes what.

The planted truth
    Items. Each of 960 items has a shape (8), a color (8) and a pattern (5), every combination three times, a
    category (6), and a popularity, log-normal.
    Images (64 x 64, PNG) show shape, color and pattern on a pale backdrop. Position, size, hue and backdrop vary, so no
    two are alike. They don't show the category.
    Texts always name the category and two of shape, color and pattern; the third in two texts out of three. Titles
    use one of several words for each, descriptions the usual one. Brands and filler sentences mean nothing.
    Users. Each of 1,000 users belongs to one of 32 circles. A circle likes 2 shapes, 2 colors, 2 patterns and 2
    categories; a member likes the same, but replaces each attribute's pair by another with chance 1/5. Users choose
    different items, one after the other, with probability proportional to
    popularity x exp(TASTE x number of the item's attributes that the user likes).
    Missing content. 20 items have no image, 20 others no text (not even a brand), 4 neither.
    Newcomers. 24 items came after training ended: 12 have interactions in validation and test only, 12 have none.

So an item's attributes decide who will like it; image and text show the attributes, each of them incompletely. A model
of ids alone learns popularity and something of the circles, for which 7 training rows per item are few.
`truth.tsv` beside the catalog holds the attributes, for tests and slices; nothing that trains reads it.

The same seed gives the same bytes: pixels come from sums, products and comparisons, which every platform rounds
alike, and no font is used. (Another release of Pillow may compress the same pixels into other bytes.)

Shapes: I items, U users, P pixels per side.
"""

import colorsys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mmrec_lmm.data.splitting import TEST, VALID, split_labels

from .writing import TEXT_COLUMNS, new_dataset, write_table, write_tables

SEED = 7  # another seed makes another shop of the same kind
N_USERS, N_ITEMS = 1000, 960
MEAN_INTERACTIONS, MIN_INTERACTIONS = 9, 5  # per user: the minimum plus a geometric variable
TASTE = 2.0  # a liked attribute makes an item exp(2) = 7 times as likely
POPULARITY = 0.5  # standard deviation of its logarithm
CIRCLES, OWN_TASTE = 32, 0.2
LIKED = 2  # values of each attribute that somebody likes
COMPLETE_DESCRIPTIONS = 2 / 3  # the share that names all three of shape, color and pattern
NO_IMAGE, NO_TEXT, NEITHER = 20, 20, 4  # items
NEWCOMERS, UNSEEN_NEWCOMERS, NEWCOMER_INTERACTIONS = 24, 12, 6
SIDE = 64  # P

# Words for each value of an attribute; the first is its name. All are data: another spelling makes another data set.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "shape": {
        "circle": ("circle", "disc", "round"),
        "square": ("square", "box", "block"),
        "diamond": ("diamond", "rhombus"),
        "triangle": ("triangle", "pyramid", "wedge"),
        "star": ("star", "starburst", "twinkle"),
        "cross": ("cross", "plus"),
        "ring": ("ring", "hoop", "donut"),
        "crescent": ("crescent", "moon", "sickle"),
    },
    "colour": {
        "red": ("red", "crimson", "scarlet"),
        "orange": ("orange", "tangerine", "apricot"),
        "yellow": ("yellow", "lemon", "golden"),
        "green": ("green", "emerald", "grassy"),
        "turquoise": ("turquoise", "teal", "aqua"),
        "blue": ("blue", "cobalt", "navy"),
        "purple": ("purple", "violet", "plum"),
        "pink": ("pink", "rose", "magenta"),
    },
    "pattern": {
        "plain": ("plain", "unicoloured"),
        "striped": ("striped", "banded"),
        "barred": ("barred", "pinstripe"),
        "dotted": ("dotted", "polka", "speckled"),
        "checked": ("checked", "chequered", "gingham"),
    },
    "category": {
        "mug": ("mug", "cup", "beaker"),
        "cushion": ("cushion", "pillow"),
        "poster": ("poster", "print"),
        "lamp": ("lamp", "lantern"),
        "notebook": ("notebook", "journal"),
        "magnet": ("magnet", "fridge button"),
    },
}
DEPARTMENTS = {
    "mug": "Kitchen", "cushion": "Living", "poster": "Walls", "lamp": "Living", "notebook": "Office",
    "magnet": "Kitchen",
}  # fmt: skip
BRANDS = ("Alvar", "Bexley", "Corvo", "Dunmore", "Elstree", "Fjord", "Gantry", "Harrow", "Ixelles", "Juniper")
OPENINGS = ("A lovely", "Our favourite", "The new", "A sturdy", "An honest", "A cheerful")
FILLERS = (
    "Made to last for years.", "Ships in a recycled carton.", "A gift that everybody remembers.",
    "Easy to clean with warm water.", "Designed in a family workshop.", "Best seller of last summer.",
    "Comes with a small card.", "Looks well at home and at work.", "Light, and pleasant to hold.",
    "Every piece is inspected by hand.",
)  # fmt: skip

HUES = {"red": 0, "orange": 28, "yellow": 54, "green": 115, "turquoise": 176, "blue": 222, "purple": 272, "pink": 325}

# Shapes and patterns as conditions on coordinates, which run from -1 to 1 across the figure.
Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]
SHAPES: dict[str, Figure] = {
    "circle": lambda x, y: x * x + y * y < 0.85,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "diamond": lambda x, y: abs(x) + abs(y) < 1.05,
    "triangle": lambda x, y: (y < 0.8) & (y > 1.7 * abs(x) - 0.9),
    "star": lambda x, y: np.maximum(abs(x), abs(y)) + 1.8 * np.minimum(abs(x), abs(y)) < 1,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95),
    "ring": lambda x, y: (x * x + y * y < 0.95) & (x * x + y * y > 0.3),
    "crescent": lambda x, y: (x * x + y * y < 0.95) & ((x - 0.45) * (x - 0.45) + y * y > 0.5),
}
PATTERNS: dict[str, Figure] = {
    "plain": lambda x, y: np.zeros(np.broadcast(x, y).shape, dtype=bool),
    "striped": lambda x, y: np.floor(3 * y) % 2 == 0,
    "barred": lambda x, y: np.floor(3 * x) % 2 == 0,
    "dotted": lambda x, y: (2 * x % 1 - 0.5) ** 2 + (2 * y % 1 - 0.5) ** 2 < 0.09,
    "checked": lambda x, y: (np.floor(3 * x) + np.floor(3 * y)) % 2 == 0,
}


def make(folder: Path, *, seed: int = SEED, force: bool = False) -> None:
    """Synthesize the data set `demo` into `folder`, in seconds; the same seed gives the same files.

    Raises ConfigError where `folder` is in use, unless `force` replaces the demo data set that is there.
    """
    rng = np.random.default_rng(seed)
    with new_dataset(folder, name="demo", force=force) as building:
        truth = _attributes(rng)
        roles = rng.permutation(N_ITEMS)
        no_image, no_text, neither, newcomers = np.split(roles, np.cumsum([NO_IMAGE, NO_TEXT, NEITHER, NEWCOMERS]))[:4]
        items = _texts(truth, rng)
        items["image"] = [f"{item:03d}.png" for item in range(N_ITEMS)]
        items.loc[np.union1d(no_text, neither), list(TEXT_COLUMNS)] = ""
        items.loc[np.union1d(no_image, neither), "image"] = ""
        pictures = _images(truth, rng)
        (building / "images").mkdir()
        for name, picture in zip(items["image"], pictures, strict=True):
            if name:
                picture.save(building / "images" / name)
        write_tables(
            building,
            name="demo",
            interactions=_interactions(truth, newcomers, rng),
            raw_users=[f"U{user:04d}" for user in range(N_USERS)],
            raw_items=[f"I{item:04d}" for item in range(N_ITEMS)],
            items=items,
        )
        truth["newcomer"] = np.isin(np.arange(N_ITEMS), newcomers).astype(int)
        write_table(building / "truth.tsv", truth.rename_axis("itemID").reset_index())


def _attributes(rng: np.random.Generator) -> pd.DataFrame:
    """Each item's shape, color, pattern and category by name; every combination of the first three equally often."""
    shape, color, pattern, category = (list(WORDS[attribute]) for attribute in WORDS)
    combinations = pd.MultiIndex.from_product([shape, color, pattern], names=["shape", "colour", "pattern"])
    table = combinations.to_frame(index=False).iloc[rng.permutation(N_ITEMS) % len(combinations)]
    return table.reset_index(drop=True).assign(category=rng.choice(category, N_ITEMS))


def _texts(truth: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Text columns for each item. The title names two of shape, color and pattern in words of its own; the
    description calls them by their usual names, and two times out of three the remaining one as well."""
    rows = []
    for item in truth.to_dict("records"):
        kind, brand = item["category"], rng.choice(BRANDS)
        shown = rng.permutation(["shape", "colour", "pattern"])
        words = [rng.choice(WORDS[attribute][item[attribute]]) for attribute in (*shown[:2], "category")]
        named = [item[attribute] for attribute in shown[: 3 if rng.random() < COMPLETE_DESCRIPTIONS else 2]]
        rows.append({
            "title": " ".join([brand, *words]),
            "brand": brand,
            "categories": f"{DEPARTMENTS[kind]}, {kind.title()}s",
            "description": f"{rng.choice(OPENINGS)} {kind}: {', '.join(rng.permutation(named))}. {rng.choice(FILLERS)}",
        })  # fmt: skip
    return pd.DataFrame(rows, columns=list(TEXT_COLUMNS))


def _images(truth: pd.DataFrame, rng: np.random.Generator) -> list[Image.Image]:
    """One picture per item, drawn at twice the size and averaged down, which smooths the edges."""
    pixels = (np.arange(2 * SIDE) + 0.5) / SIDE - 1  # (2P,) from -1 to 1
    pictures = []
    for shape, color, pattern in zip(truth["shape"], truth["colour"], truth["pattern"], strict=True):
        size = rng.uniform(0.6, 0.8)
        x, y = (pixels - rng.uniform(-0.15, 0.15, (2, 1))) / size  # each (2P,), in the figure's own coordinates
        x, y = x[None, :], y[:, None]
        hue = (HUES[color] + rng.uniform(-6, 6)) % 360 / 360
        ink = _rgb(hue, rng.uniform(0.8, 0.95), rng.uniform(0.8, 0.95))
        second_ink = ink + 0.65 * (1 - ink)  # the same hue, paler
        backdrop = _rgb(rng.random(), rng.uniform(0.0, 0.08), rng.uniform(0.85, 1.0))
        canvas = np.where(PATTERNS[pattern](x, y)[..., None], second_ink, ink)  # (2P, 2P, 3)
        canvas = np.where(SHAPES[shape](x, y)[..., None], canvas, backdrop)
        canvas = canvas.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))  # (P, P, 3)
        pictures.append(Image.fromarray((255 * canvas).round().astype(np.uint8)))
    return pictures


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _interactions(truth: pd.DataFrame, newcomers: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """userID, itemID and x_label: drawn by taste and popularity, split by MMRec's rule; newcomers join afterwards."""
    affinity = TASTE * _matches(truth, rng)  # (U, I)
    popularity = POPULARITY * rng.standard_normal(N_ITEMS)  # (I,)
    popularity[newcomers] = -np.inf
    counts = MIN_INTERACTIONS - 1 + rng.geometric(1 / (MEAN_INTERACTIONS - MIN_INTERACTIONS + 1), N_USERS)  # (U,)
    users, items = _draw(affinity + popularity, counts, rng)
    labels = split_labels(users, rng)
    late = newcomers[UNSEEN_NEWCOMERS:]
    late_items, late_users = _draw(affinity.T[late], np.full(len(late), NEWCOMER_INTERACTIONS), rng)
    late_labels = np.where(np.arange(len(late_items)) % 2 == 0, VALID, TEST)
    return pd.DataFrame({
        "userID": np.append(users, late_users),
        "itemID": np.append(items, late[late_items]),
        "x_label": np.append(labels, late_labels),
    })  # fmt: skip


def _matches(truth: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """How many of each item's attributes each user likes, (U, I)."""
    circle = rng.integers(CIRCLES, size=N_USERS)
    matches = np.zeros((N_USERS, N_ITEMS))
    for attribute, values in WORDS.items():
        shared, own = _likes(CIRCLES, len(values), rng)[circle], _likes(N_USERS, len(values), rng)  # (U, values) each
        liked = np.where(rng.random((N_USERS, 1)) < OWN_TASTE, own, shared)
        matches += liked[:, pd.Categorical(truth[attribute], categories=list(values)).codes]
    return matches


def _likes(n: int, n_values: int, rng: np.random.Generator) -> np.ndarray:
    """(n, n_values) bool, `LIKED` random values of each row."""
    return rng.random((n, n_values)).argsort(axis=1) < LIKED


def _draw(logits: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """For each row r, `counts[r]` different columns, one after the other with probability proportional to
    exp(logits): the Gumbel top-k trick. Returns rows and columns, each (counts.sum(),)."""
    ranking = np.argsort(-(logits + rng.gumbel(size=logits.shape)), axis=1, kind="stable")
    rows, ranks = np.nonzero(np.arange(logits.shape[1]) < counts[:, None])
    return rows, ranking[rows, ranks]
