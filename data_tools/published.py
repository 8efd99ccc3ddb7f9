"""The public data sets that `data get` knows: their files, addresses, hashes, terms and citations.

Amazon's are the 2014 edition. MMRec's four data sets come from these ratings, metadata and image features: the
5-core of the ratings (not of the reviews), repeated until no user and no item has fewer than five.
The counts are those of MMRec's data sets, and of GroupLens's readme files; `data get` compares.
"""

from dataclasses import dataclass

from mmrec_lmm.errors import ConfigError, did_you_mean

IMAGE_FEATURES = "image features"  # the part of a data set that `--image-features` asks for


@dataclass(frozen=True)
class PublishedFile:
    """One file: its path under the addresses of its data set, and the hashes that are known of it."""

    path: str
    digest: str = ""  # by its authors: SHA-256, or MD5 with 32 digits; another content is refused
    sha256: str = ""  # by somebody else: another content is only reported, as it may be newer
    sha256_by: str = ""
    part: str = ""  # optional: brought on request

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Counts:
    users: int
    items: int
    interactions: int

    def __str__(self) -> str:
        return f"{self.users:,} users, {self.items:,} items, {self.interactions:,} interactions"


@dataclass(frozen=True)
class PublishedDataset:
    """A data set that can be downloaded: `addresses` are base addresses in order of preference."""

    name: str
    summary: str
    addresses: tuple[str, ...]
    files: tuple[PublishedFile, ...]
    page: str  # of its authors, for people
    terms: str
    citation: str
    layout: str  # of sources.LAYOUTS
    core: int  # how often users and items must occur, unless --core says otherwise
    counts: Counts | None = None  # after that; None: they change
    has_images: bool = False  # addresses of images, for `data images`

    def urls(self, file: PublishedFile, mirror: str | None = None) -> tuple[str, ...]:
        """The addresses of a file, in order of preference; with a mirror, only that one's."""
        return tuple(f"{base.rstrip('/')}/{file.path}" for base in ([mirror] if mirror else self.addresses))


def published(name: str) -> PublishedDataset:
    """The data set of that name, in any case. Raises ConfigError."""
    if name.lower() not in DATASETS:
        raise ConfigError(
            f"data get: expected one of {', '.join(DATASETS)}, got {name}{did_you_mean(name, DATASETS)}; `data build` "
            "and `data import` make data sets from files of yours"
        )
    return DATASETS[name.lower()]


def _amazon(name: str, category: str, sha256: str, counts: Counts) -> PublishedDataset:
    return PublishedDataset(
        name=name,
        summary=f"Amazon {category.replace('_', ' ')}, 2014 edition, 5-core of the ratings, as MMRec's {name}",
        addresses=("https://snap.stanford.edu/data/amazon/productGraph/",),
        files=(
            PublishedFile(f"categoryFiles/ratings_{category}.csv", sha256=sha256, sha256_by="omnirec"),
            PublishedFile(f"categoryFiles/meta_{category}.json.gz"),
            PublishedFile(f"image_features/categoryFiles/image_features_{category}.b", part=IMAGE_FEATURES),
        ),
        page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        terms=(
            "No license text comes with these files. Their authors ask for a citation, and use in research is "
            "customary. The texts belong to their writers, the images to Amazon and its sellers: don't redistribute "
            "them."
        ),
        citation=(
            "R. He, J. McAuley: Ups and downs: modeling the visual evolution of fashion trends with one-class "
            "collaborative filtering, WWW 2016; J. McAuley, C. Targett, Q. Shi, A. van den Hengel: Image-based "
            "recommendations on styles and substitutes, SIGIR 2015"
        ),
        layout="amazon-2014",
        core=5,
        counts=counts,
        has_images=True,
    )


def _movielens(
    name: str, summary: str, *, digest: str = "", redistribution: str, counts: Counts | None
) -> PublishedDataset:
    return PublishedDataset(
        name=name,
        summary=summary,
        addresses=("https://files.grouplens.org/datasets/movielens/",),
        files=(PublishedFile(f"{name}.zip", digest=digest),),
        page="https://grouplens.org/datasets/movielens/",
        terms=(
            "Research use. Cite it in publications; don't state or imply that the University of Minnesota or "
            "GroupLens endorses you; no commercial use without their permission; "
            f"{redistribution}. The readme in the file has the full text."
        ),
        citation=(
            "F. M. Harper, J. A. Konstan: The MovieLens datasets: history and context, ACM Transactions on Interactive "
            "Intelligent Systems 5(4), 2015"
        ),
        layout="movielens",
        core=0,
        counts=counts,
    )


DATASETS = {
    dataset.name: dataset
    for dataset in (
        _amazon(
            "baby",
            "Baby",
            "a219f779b2694f660f1ee243f2af71d63c2c9828425e716569faace305e978d1",
            Counts(19_445, 7_050, 160_792),
        ),
        _amazon(
            "sports",
            "Sports_and_Outdoors",
            "a31a27e2f0cd85b50acd002378cf1a23a0b3f2659484defb3225a836118252d4",
            Counts(35_598, 18_357, 296_337),
        ),
        _amazon(
            "clothing",
            "Clothing_Shoes_and_Jewelry",
            "7bf571cb99abaebf380d2a231986e6df7b622ebd49b308e2506f1c0aab54b29a",
            Counts(39_387, 23_033, 278_677),
        ),
        _amazon(
            "elec",
            "Electronics",
            "a8e5b66b7f5371d1659ff88ae4acec91604125d6850f4f7e1c418120f2f9c16c",
            Counts(192_403, 63_001, 1_689_188),
        ),
        _movielens(
            "ml-100k",
            "MovieLens 100K: ratings of films, titles and genres, 1998",
            digest="0e33842e24a9c977be4e0107933c0723",
            redistribution="no redistribution without permission",
            counts=Counts(943, 1_682, 100_000),
        ),
        _movielens(
            "ml-1m",
            "MovieLens 1M: ratings of films, titles and genres, 2003",
            digest="c4d9eecfca2ab87c1945afe126590906",
            redistribution="no redistribution without permission",
            counts=Counts(6_040, 3_706, 1_000_209),
        ),
        _movielens(
            "ml-latest-small",
            "MovieLens, the small edition that GroupLens renews from time to time",
            redistribution="redistribution under the same terms",
            counts=None,
        ),
    )
}
