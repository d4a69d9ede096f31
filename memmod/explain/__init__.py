"""What the memories say: which units carry which class, and what forgetting takes from an image's logit."""

from memmod.explain.attribution import Attribution, attribute
from memmod.explain.detail import detailed_map
from memmod.explain.targets import TARGETS

__all__ = ["TARGETS", "Attribution", "attribute", "detailed_map"]
