"""How much of the forgetting sits in the head: the original's head on the subject's body.

memmod's own. `modulate()` never gates the head, so there is no gate of it to open. The figure tells where the
forgetting sits and is not judged by oracles: the features of a network trained by itself stand in no relation to the
original's head (two oracles of one class of Fashion-MNIST gave 0.957 and 0.008).
"""

from __future__ import annotations

from memmod.errors import ModelError
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.measuring import accuracy, as_file, example, tested_count
from memmod.evaluation.features import head_name, unwrapped

NAME = "head swap"


def run(subject: Subject, case: Case) -> dict[str, Measure]:
    """Acc_f, "acc_forget", with the original's head on the subject's body.

    Raises:
        ModelError: the subject has another head.
    """
    network, original = as_file(case, subject.network), unwrapped(case.original, example(case, case.original))
    own, theirs = (n.get_submodule(head_name(n, example(case, n))) for n in (network, original))
    try:
        own.load_state_dict(theirs.state_dict())
    except RuntimeError as error:
        raise ModelError(
            f"the original's head does not fit {subject.name} ({error}): compare networks of one architecture"
        ) from error
    return {"acc_forget": accuracy(case, network, forgotten=True, attack=NAME)}


HEAD_SWAP = Attack(
    name=NAME,
    level="L1",
    version=1,
    knows={"": "neither"},
    run=run,
    cost=lambda case: tested_count(case, forgotten=True),
    source="the classifier of the network before unlearning on the features after it",
)
