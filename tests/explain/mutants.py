"""Errors planted in the formulas of explanations, each with the test that has to see it."""

from __future__ import annotations

from tests.explain import test_atlas, test_attribution, test_parts
from tests.planting import Plant

PLANTS = (
    Plant(
        "the path's end all along",
        "explain.attribution",
        "1 - float(t) * (1 - gate)",
        "gate",
        test_attribution.test_units_are_the_memory_gradient_integrated,
    ),
    Plant(
        "half of the path",
        "explain.attribution",
        "(points + 1) / 2",
        "(points + 1) / 4",
        test_attribution.test_units_are_the_memory_gradient_integrated,
    ),
    Plant(
        "tensors behind their gates",
        "explain.attribution",
        "tensor.open * gradient",
        "tensor.gated.detach() * gradient",
        test_attribution.test_units_are_the_memory_gradient_integrated,
    ),
    Plant(
        "units without what is closed of them",
        "explain.attribution",
        "dtype=torch.float64) * closed)",
        "dtype=torch.float64))",
        test_attribution.test_units_are_the_memory_gradient_integrated,
    ),
    Plant(
        "pixels by the square of what is closed",
        "explain.attribution",
        "closed.float().unsqueeze(2)",
        "closed.float().square().unsqueeze(2)",
        test_attribution.test_a_closed_unit_that_alone_reads_a_place_is_found_there,
    ),
    Plant(
        "no strength",
        "explain.attribution",
        "rows.prod(1) ** strength",
        "rows.prod(1)",
        test_attribution.test_strength_is_the_exponent_of_the_gates,
    ),
    Plant(
        "a set by its mean gate",
        "explain.attribution",
        "rows.prod(1) ** strength",
        "rows.mean(1) ** strength",
        test_attribution.test_a_set_closes_by_the_product_of_its_gates,
    ),
    Plant(
        "intersection over the sum",
        "explain.atlas",
        "np.divide(both - apart, both + apart,",
        "np.divide(both - apart, both,",
        test_atlas.test_weighted_jaccard_by_hand,
    ),
    Plant(
        "specificity without the class's own gate",
        "explain.atlas",
        "np.where(shut, others - row,",
        "np.where(shut, others,",
        test_atlas.test_specific_units_come_first,
    ),
    Plant(
        "overlap as a share of the other's units",
        "explain.atlas",
        "both[c, other] / own[c])",
        "both[c, other] / own[other])",
        test_atlas.test_overlaps_are_shares_of_the_class_s_own_units,
    ),
    Plant(
        "confusions the wrong way round",
        "explain.confusions",
        "_standard_ranks(confused[upper])",
        "_standard_ranks(-confused[upper])",
        test_atlas.test_agreement_is_seen_where_neighbours_share_units,
    ),
    Plant(
        "the control of no shuffling",
        "explain.confusions",
        "generator.permuted(own, axis=1)",
        "own",
        test_atlas.test_agreement_is_seen_where_neighbours_share_units,
    ),
    Plant(
        "nothing forgotten",
        "explain.flows",
        "forget=labels.to(wf.device)",
        "forget=-1",
        test_parts.test_flows_are_shares_of_predictions,
    ),
    Plant(
        "a set's last class alone",
        "explain.flows",
        "forget=as_forget(each)",
        "forget=each[-1]",
        test_parts.test_flows_are_shares_of_predictions,
    ),
    Plant(
        "shares of all images",
        "explain.taken",
        "total = found.total[rows].sum()",
        "total = found.total.sum()",
        test_parts.test_shares_are_of_the_sum_and_add_up,
    ),
    Plant(
        "the first stage for the largest",
        "explain.recount",
        'key=lambda s: own["stages"][s]["share"])\n        name',
        "key=lambda s: -s)\n        name",
        test_parts.test_a_class_is_told_in_sentences,
    ),
)
