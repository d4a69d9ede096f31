"""What `memmod explain` wrote: the parts of explanation.json, each of which may be absent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from memmod.errors import RunError
from memmod.files.strict_json import Origin, check, parse

VERSION = 1

# Nothing but a picture inside the page itself: no address, no other kind of file.
Picture = Annotated[str, msgspec.Meta(pattern=r"\Adata:image/png;base64,[A-Za-z0-9+/]+={0,2}\Z")]
# A figure; null where there is none, as for a class without images.
Figure = float | None
Row = list[Figure] | None
Count = Annotated[int, msgspec.Meta(ge=0)]

_ADVICE = "mend it, delete it, or make it again with `memmod explain RUN`"


class LayerClosed(msgspec.Struct, frozen=True):
    """How many of a layer's units each class closes: `closed` holds C numbers."""

    name: str
    units: Count
    closed: list[Count]


class Specific(msgspec.Struct, frozen=True):
    """A unit that one class closes and others do not."""

    layer: str
    unit: Count
    specificity: Figure
    gate: Figure


class Control(msgspec.Struct, frozen=True):
    """What shuffled classes give: the mean and the interval."""

    mean: Figure
    low: Figure
    high: Figure


class Confusions(msgspec.Struct, frozen=True):
    """Rank correlation of the rows' similarity with how often the network takes one class for the other."""

    rho: Figure
    p: Figure
    pairs: Count
    control: Control


class Atlas(msgspec.Struct, frozen=True):
    """Which classes close which units; matrices are `[C][C]`, null where there are too many classes for all pairs."""

    threshold: float
    layers: list[LayerClosed]
    units: Count
    closed: list[Count]
    closed_by: list[Count]
    specific: list[list[Specific]]
    jaccard: list[Row] | None = None
    rank: list[Row] | None = None
    linkage: list[Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]] | None = None
    order: list[Count] | None = None
    confusions: Confusions | None = None


class SetFlow(msgspec.Struct, frozen=True):
    """Shares of the predictions on each class of a set, with the whole set forgotten."""

    classes: list[Count]
    after: dict[str, list[Figure]]


class Flows(msgspec.Struct, frozen=True):
    """Shares of predictions: row c is of class c's test images, in `after` with c forgotten."""

    before: list[Row] | None
    after: list[Row] | None
    retrained: dict[str, list[Figure]] | None = None
    sets: list[SetFlow] = []


class LayerShare(msgspec.Struct, frozen=True):
    """A layer's part of what an image's logit lost."""

    name: str
    share: Figure


class UnitShare(msgspec.Struct, frozen=True):
    """A unit's part of what an image's logit lost."""

    layer: str
    unit: Count
    share: Figure


class Taken(msgspec.Struct, frozen=True):
    """What forgetting takes from a class's logit, over some of its test images: `drop`, the mean, and shares of it."""

    images: Count
    drop: Figure
    before: Figure = None
    unplaced: Figure = None
    stages: list[LayerShare] = []
    layers: list[LayerShare] = []
    units: list[UnitShare] = []


class Image(msgspec.Struct, frozen=True):
    """One test image under one selection: what was predicted, and where the class's logit was lost."""

    image: Count
    label: Count
    forgotten: list[Count]
    before: Count
    after: Count
    picture: Picture
    map: Picture | None = None
    logit_before: Figure = None
    logit_after: Figure = None
    drop: Figure = None
    unplaced: Figure = None
    layers: list[LayerShare] = []
    units: list[UnitShare] = []


class Exciting(msgspec.Struct, frozen=True):
    """An image that excites a unit, and the part of it that does: `box` is x0, y0, x1, y1 in pixels."""

    image: Count
    picture: Picture
    box: Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)] | None
    value: Figure


class Closing(msgspec.Struct, frozen=True):
    """An image whose logit changes when a unit is closed."""

    image: Count
    picture: Picture
    change: Figure


class Response(msgspec.Struct, frozen=True):
    """What a unit responds to, and what closing it for a class changes."""

    layer: str
    unit: Count
    class_: Count = msgspec.field(name="class")
    exciting: list[Exciting] = []
    closing: list[Closing] = []


class Value(msgspec.Struct, frozen=True):
    """A figure in a sentence, and where in this file it stands."""

    shown: str
    path: str


class Sentence(msgspec.Struct, frozen=True):
    """A sentence, with the figures that it names in their order."""

    text: str
    values: list[Value] = []


class ClassRecount(msgspec.Struct, frozen=True):
    """What is told of a class."""

    class_: Count = msgspec.field(name="class")
    sentences: list[Sentence] = []


class ImageRecount(msgspec.Struct, frozen=True):
    """What is told of a test image."""

    image: Count
    sentences: list[Sentence] = []


class Recount(msgspec.Struct, frozen=True):
    """The findings in sentences."""

    classes: list[ClassRecount] = []
    images: list[ImageRecount] = []


Interval = Annotated[list[Figure], msgspec.Meta(min_length=2, max_length=2)]


class MapFaithfulness(msgspec.Struct, frozen=True):
    """How well a kind of map finds the pixels that matter, with 95 % intervals."""

    map: str
    insertion: Figure
    insertion_interval: Interval
    deletion: Figure
    deletion_interval: Interval
    other_class: Figure = None


class MapChecks(msgspec.Struct, frozen=True):
    """How alike the map of the gates' path stays without what it is made of, and how far its parts miss the drop."""

    memories_rank: Figure
    row_rank: Figure
    sum_median: Figure
    sum_worst: Figure


class Faithfulness(msgspec.Struct, frozen=True):
    """Insertion and deletion, map by map, and what the map of the gates' path depends on."""

    steps: Count
    images: Count
    rows: list[MapFaithfulness]
    checks: MapChecks | None = None


class Explanation(msgspec.Struct, frozen=True):
    """Everything that `memmod explain` found of one run. Parts that were not made are None."""

    explanation: int
    data: str
    class_names: Annotated[list[str], msgspec.Meta(min_length=1)]
    input_shape: list[int]
    settings: dict[str, Any]
    versions: dict[str, Any]
    atlas: Atlas | None = None
    flows: Flows | None = None
    taken: list[Taken | None] | None = None
    images: list[Image] | None = None
    responses: list[Response] | None = None
    recount: Recount | None = None
    faithfulness: Faithfulness | None = None

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if self.explanation != VERSION:
            raise ValueError(f"explanation is {self.explanation}, this memmod reads {VERSION}")
        if self.atlas is not None:
            _check_atlas(self.atlas, classes)
        if self.flows is not None:
            _check_flows(self.flows, classes)
        if self.taken is not None:
            _check_length("taken", self.taken, classes)
        named = [c for image in self.images or [] for c in (image.label, image.before, image.after, *image.forgotten)]
        named += [response.class_ for response in self.responses or []]
        named += [told.class_ for told in (self.recount.classes if self.recount else [])]
        _check_classes("images, responses and recount", named, classes)


def read_explanation(path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> Explanation | None:
    """What explanation.json holds, or None where there is none.

    Args:
        class_names: of the run in whose folder it lies, if they are known.

    Raises:
        RunError: damaged, of another version, or of other classes than the run.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}): {_ADVICE}") from None
    origin = Origin(str(path), RunError, _ADVICE)
    found = check(parse(content, origin), Explanation, origin)
    if class_names is not None and list(class_names) != found.class_names:
        origin.refuse("names other classes than the run it lies in")
    return found


def _check_atlas(atlas: Atlas, classes: int) -> None:
    for layer in atlas.layers:
        _check_length(f"closed of the layer {layer.name!r}", layer.closed, classes)
    _check_length("atlas.closed", atlas.closed, classes)
    _check_length("atlas.closed_by", atlas.closed_by, classes + 1)
    _check_length("atlas.specific", atlas.specific, classes)
    _check_matrix("atlas.jaccard", atlas.jaccard, classes)
    _check_matrix("atlas.rank", atlas.rank, classes)
    if atlas.order is not None and sorted(atlas.order) != list(range(classes)):
        raise ValueError(f"atlas.order does not name each of {classes} classes once")
    if atlas.linkage is not None:
        _check_length("atlas.linkage", atlas.linkage, classes - 1)
        for step, (a, b, *_) in enumerate(atlas.linkage):
            if not all(0 <= part < classes + step and part == int(part) for part in (a, b)):
                raise ValueError(f"atlas.linkage joins what is not there in its step {step}")


def _check_flows(flows: Flows, classes: int) -> None:
    _check_matrix("flows.before", flows.before, classes)
    _check_matrix("flows.after", flows.after, classes)
    rows = [("flows.retrained", flows.retrained or {})]
    for number, group in enumerate(flows.sets):
        _check_classes(f"flows.sets[{number}]", group.classes, classes)
        rows.append((f"flows.sets[{number}].after", group.after))
    for what, by_class in rows:
        _check_classes(what, [int(c) if c.isdecimal() else -1 for c in by_class], classes)
        for c, row in by_class.items():
            _check_length(f"{what}[{c!r}]", row, classes)


def _check_matrix(what: str, matrix: list[Row] | None, classes: int) -> None:
    if matrix is not None:
        _check_length(what, matrix, classes)
        for row in matrix:
            if row is not None:
                _check_length(f"a row of {what}", row, classes)


def _check_length(what: str, values: Sequence[Any], length: int) -> None:
    if len(values) != length:
        raise ValueError(f"{what} holds {len(values)} entries, not {length}")


def _check_classes(what: str, named: Iterable[int], classes: int) -> None:
    wrong = sorted({c for c in named if not 0 <= c < classes})
    if wrong:
        raise ValueError(f"{what} name the class {wrong[0]}, of {classes}")
