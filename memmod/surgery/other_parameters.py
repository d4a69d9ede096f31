"""Lists the parameters that no layer's row tells of: embeddings, positions, tokens, tables, scales."""

from __future__ import annotations

from torch import nn

from memmod.nn.modulated import Modulated
from memmod.surgery.record import Row, Surgery
from memmod.surgery.trace import Observation

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def note_other_parameters(surgery: Surgery, observation: Observation) -> None:
    """Give every parameter with two dimensions or more a row, if no row tells of it or of its layer.

    Args:
        observation: a run in which the model had these parameters.
    """
    # What was replaced has its parts in rows of their own.
    told = {row.name for row in surgery.rows if row.action != "replaced"}
    modules = dict(surgery.model.named_modules())
    for name, parameter in surgery.model.named_parameters():
        parts = name.split(".")
        if parameter.dim() < 2 or any(".".join(parts[:end]) in told for end in range(1, len(parts) + 1)):
            continue
        owner = name.rpartition(".")[0]
        module = modules[owner]
        if isinstance(module, Modulated) and any(parameter is memory for _, memory in module.memories()):
            continue
        if isinstance(module, EMBEDDINGS):
            surgery.note(owner, module, "skipped", "an embedding: its rows are looked up")
        else:
            surgery.rows.append(Row(name, "Parameter", "skipped", _use(id(parameter), observation)))


def _use(parameter: int, observation: Observation) -> str:
    calls = [call for call in observation.calls if parameter in call.inputs]
    if not calls:
        return "no function of the example run took it"
    return f"no layer's weight: {calls[0].name} in {calls[0].module or 'the model'} takes it"
