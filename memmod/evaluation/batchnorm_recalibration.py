"""Whether a class stays forgotten when the normalised units' statistics are estimated anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from memmod.errors import ModelError, RunError
from memmod.evaluation.accuracy import BATCH, Accuracies, Selections, Tally, as_forget, batches, single_classes

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.model import ModulatedModel

METHOD = "re-standardised"


def restandardised(
    wf: ModulatedModel,
    split: Split,
    selections: Selections | None = None,
    *,
    batch_size: int = BATCH,
    seed: int = 0,
) -> Accuracies:
    """Accuracies with every normalised unit standardised by the batch's statistics under the selection.

    This is what an estimation of BatchNorm statistics on gated activations gives back to a network, whether or not the
    norms are folded. Batches hold all classes, as test data come: shuffled, the selected class among the others.

    Args:
        split: images and labels, of every class.
        selections: what to forget each time; default: every class by itself.
        batch_size: images whose statistics are taken together, at least 2.

    Raises:
        ModelError: the network has no normalised units.
        DataError: a selected class has no images.
        RunError: `batch_size` is below 2.
    """
    if batch_size < 2:
        raise RunError(f"batch_size is {batch_size}; statistics are those of at least 2 images")
    if not wf.has_batch_statistics:
        raise ModelError("this network has no unit normalised by BatchNorm, so there is nothing to re-standardise")
    selections = single_classes(wf.num_classes) if selections is None else selections
    tally = Tally(selections, wf.num_classes)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), wf.batch_statistics():
        for x, labels in batches(split, batch_size, wf.device, order):
            for row, selection in enumerate(tally.selections):
                tally.add(row, wf.logits(wf(x, forget=as_forget(selection))), labels)
    return tally.accuracies(METHOD)
