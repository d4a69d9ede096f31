"""Errors planted in the formulas of metrics, attacks and verdicts, each with the test that has to see it."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.evaluation.attacks import (
    test_anamnesis,
    test_batchnorm,
    test_bootstrap,
    test_gate_flip,
    test_membership,
    test_probes,
    test_prototype,
    test_quantisation,
    test_relearning,
    test_shadow,
)
from tests.evaluation.audit import test_audit, test_interval
from tests.evaluation.metrics import test_metrics


class Plant(NamedTuple):
    """One error: in a module of `memmod.evaluation`, `snippet`, which is there once, becomes `replacement`."""

    name: str
    module: str
    snippet: str
    replacement: str
    test: Callable[[], None]


PLANTS = (
    Plant(
        "ties count whole",
        "attacks.membership",
        "right=False) +",
        "right=True) +",
        test_membership.test_auc_of_four_points,
    ),
    Plant(
        "AUC of the others",
        "attacks.membership",
        "/ (2 * len(others))",
        "/ len(others)",
        test_membership.test_auc_of_four_points,
    ),
    Plant(
        "one false positive more",
        "attacks.membership",
        "int(fpr * len(others))",
        "int(fpr * len(others)) + 1",
        test_membership.test_tpr_at_fpr,
    ),
    Plant(
        "the threshold counts as above",
        "attacks.membership",
        "members > threshold",
        "members >= threshold",
        test_membership.test_tpr_at_fpr,
    ),
    Plant(
        "Mentr with the label's own term",
        "attacks.membership",
        "rest.sum(1) - rest.gather(1, labels[:, None]).squeeze(1)",
        "rest.sum(1)",
        test_membership.test_modified_entropy_of_three_classes,
    ),
    Plant(
        "entropy in place of Mentr",
        "attacks.membership",
        "-(1 - own) * own",
        "-own * own",
        test_membership.test_modified_entropy_of_three_classes,
    ),
    Plant(
        "entropy's sign",
        "attacks.membership",
        "torch.xlogy(p, p).sum(1)",
        "-torch.xlogy(p, p).sum(1)",
        test_membership.test_signals_are_larger_for_an_image_that_is_known,
    ),
    Plant(
        "Mentr's sign",
        "attacks.membership",
        '"modified_entropy": -modified',
        '"modified_entropy": modified',
        test_membership.test_signals_are_larger_for_an_image_that_is_known,
    ),
    Plant(
        "one tail",
        "attacks.bootstrap",
        "(1 - level) / 2",
        "1 - level",
        test_bootstrap.test_the_width_is_that_of_the_standard_error,
    ),
    Plant(
        "a half of the images",
        "attacks.bootstrap",
        "(len(sample),), generator",
        "(len(sample) // 2,), generator",
        test_bootstrap.test_samples_are_drawn_by_themselves_and_by_seed,
    ),
    Plant(
        "no resampling",
        "attacks.bootstrap",
        "torch.randint(len(sample), (len(sample),), generator=generator)",
        "torch.arange(len(sample))",
        test_bootstrap.test_an_interval_of_two_values,
    ),
    Plant(
        "2^b levels",
        "attacks.quantisation",
        "2 ** (bits - 1) - 1",
        "2 ** (bits - 1)",
        test_quantisation.test_a_vector_of_three_in_int4,
    ),
    Plant(
        "truncation",
        "attacks.quantisation",
        ".round() * step",
        ".trunc() * step",
        test_quantisation.test_a_vector_of_three_in_int4,
    ),
    Plant(
        "levels of the whole tensor",
        "attacks.quantisation",
        "if per_channel else",
        "if not per_channel else",
        test_quantisation.test_rows_have_levels_of_their_own,
    ),
    Plant(
        "rows of zeros divided by zero",
        "attacks.quantisation",
        "torch.where(step > 0, (weight / step).round() * step, weight)",
        "(weight / step).round() * step",
        test_quantisation.test_rows_have_levels_of_their_own,
    ),
    Plant(
        "mix the other way round",
        "attacks.prototype",
        "(1 - mix) * row + mix * norm",
        "mix * row + (1 - mix) * norm",
        test_prototype.test_a_row_mixed_with_a_prototype,
    ),
    Plant(
        "no centre",
        "attacks.prototype",
        "shots.mean(0) - centre",
        "shots.mean(0)",
        test_prototype.test_a_row_mixed_with_a_prototype,
    ),
    Plant(
        "one image's feature",
        "attacks.prototype",
        "shots.mean(0) - centre",
        "shots[0] - centre",
        test_prototype.test_a_row_mixed_with_a_prototype,
    ),
    Plant(
        "harm of one image more",
        "attacks.prototype",
        "margins[int(harm * len(margins))]",
        "margins[int(harm * len(margins)) + 1]",
        test_prototype.test_the_bias_moves_no_more_images_than_are_allowed,
    ),
    Plant(
        "the slope's sign",
        "attacks.shadow",
        "(1 + SLOPE) * outs",
        "(1 - SLOPE) * outs",
        test_shadow.test_shadows_that_know_an_image_lower_its_score,
    ),
    Plant(
        "no relative probability",
        "attacks.shadow",
        "/ (((1 + SLOPE) * outs.mean(0) + 1 - SLOPE) / 2)",
        "* 1.0",
        test_shadow.test_shadows_that_know_an_image_lower_its_score,
    ),
    Plant(
        "the ratio turned over",
        "attacks.shadow",
        "ratio / GAMMA",
        "GAMMA / ratio",
        test_shadow.test_the_score_of_one_image_against_two,
    ),
    Plant(
        "γ itself does not count",
        "attacks.shadow",
        "right=True",
        "right=False",
        test_shadow.test_the_score_of_one_image_against_two,
    ),
    Plant(
        "accuracy, not balanced",
        "attacks.shadow",
        "return sum(right.double().mean().item() if len(right) else 0.0 for right in kinds) / 2",
        "return (found == labels).double().mean().item()",
        test_shadow.test_balanced_accuracy_of_two_kinds,
    ),
    Plant(
        "the class's own logit is read",
        "attacks.shadow",
        "if c not in forget]\n    return z[:, kept]",
        "]\n    return z[:, kept]",
        test_shadow.test_log_probabilities_of_the_retained_classes,
    ),
    Plant(
        "the farthest neighbours",
        "attacks.probes",
        "largest=False",
        "largest=True",
        test_probes.test_neighbours_on_a_line,
    ),
    Plant(
        "one neighbour",
        "attacks.probes",
        "topk(min(k, len(train))",
        "topk(min(1, len(train))",
        test_probes.test_neighbours_on_a_line,
    ),
    Plant(
        "the nearest image for the nearest mean",
        "attacks.probes",
        "classes[torch.cdist(test, means).argmin(1)]",
        "labels[torch.cdist(test, train).argmin(1)]",
        test_probes.test_the_nearest_mean_on_a_line,
    ),
    Plant(
        "test features standardised by their own",
        "attacks.probes",
        "(test - mean) / deviation",
        "(test - test.mean(0)) / deviation",
        test_probes.test_features_are_standardised_by_those_of_training,
    ),
    Plant(
        "accuracy, not the mean of recalls",
        "attacks.probes",
        "return recall[count > 0].mean().item()",
        "return right.double().mean().item()",
        test_probes.test_balanced_accuracy_of_unequal_classes,
    ),
    Plant(
        "the last point left out",
        "attacks.probes",
        "len(points) - 1, most",
        "len(points) - 2, most",
        test_probes.test_points_of_a_deep_network_are_thinned,
    ),
    Plant(
        "mean of the points measured",
        "attacks.relearning",
        "torch.trapezoid(values, torch.tensor(steps, dtype=torch.float64)).item() / (steps[-1] - steps[0])",
        "values.mean().item()",
        test_relearning.test_a_curve_in_two_figures,
    ),
    Plant(
        "the last step reported",
        "attacks.relearning",
        "found[steps.index(REPORTED_STEP)]",
        "found[-1]",
        test_relearning.test_a_curve_in_two_figures,
    ),
    Plant(
        "measured after the step",
        "attacks.relearning",
        "if step in steps:",
        "if step + 1 in steps:",
        test_relearning.test_a_curve_is_measured_before_its_steps,
    ),
    Plant(
        "shots drawn anew",
        "attacks.relearning",
        "torch.cat((shots, retained[",
        "torch.cat((shots + step, retained[",
        test_relearning.test_images_of_a_step,
    ),
    Plant(
        "the same images each step",
        "attacks.relearning",
        "case.seed * 1_000_003 + step",
        "case.seed * 1_000_003",
        test_relearning.test_images_of_a_step,
    ),
    Plant(
        "the class among the retained",
        "attacks.relearning",
        "images(case, case.train, forgotten=False, at_least=count",
        "images(case, case.train, forgotten=True, at_least=count",
        test_relearning.test_images_of_a_step,
    ),
    Plant(
        "the most open gates",
        "attacks.gate_flip",
        ".argsort(stable=True)",
        ".argsort(stable=True, descending=True)",
        test_gate_flip.test_the_most_closed_gates_are_opened,
    ),
    Plant(
        "every row opened",
        "attacks.gate_flip",
        "for c in forget:",
        "for c in range(wf.num_classes):",
        test_gate_flip.test_the_most_closed_gates_are_opened,
    ),
    Plant(
        "the sum of a set's gates",
        "attacks.gate_flip",
        ".prod(0)",
        ".sum(0)",
        test_gate_flip.test_of_a_set_the_product_of_its_gates_counts,
    ),
    Plant(
        "shares rounded down",
        "attacks.gate_flip",
        "max(1, math.ceil(fraction * len(order)))",
        "int(fraction * len(order))",
        test_gate_flip.test_at_least_one_gate_is_opened,
    ),
    Plant(
        "the caller's memories changed",
        "attacks.gate_flip",
        "detached_copy(wf)",
        "wf",
        test_gate_flip.test_the_most_closed_gates_are_opened,
    ),
    Plant(
        "norms that stay in eval mode",
        "attacks.batchnorm",
        "norm.training = True",
        "norm.training = False",
        test_batchnorm.test_estimation_undoes_gates,
    ),
    Plant(
        "running averages",
        "attacks.batchnorm",
        "new.eps, new.momentum = EPS, None",
        "new.eps, new.momentum = EPS, 0.1",
        test_batchnorm.test_statistics_are_the_mean_of_the_batches,
    ),
    Plant(
        "convolutions in front of norms scaled",
        "attacks.batchnorm",
        "if not readers & norms.keys():",
        "if True:",
        test_batchnorm.test_units_are_norms_and_layers_without_one,
    ),
    Plant(
        "variances for deviations",
        "attacks.batchnorm",
        ".double().std(1)",
        ".double().var(1)",
        test_batchnorm.test_rescaling_undoes_gates,
    ),
    Plant(
        "the factor turned over",
        "attacks.batchnorm",
        "wanted / spread.clamp_min(torch.finfo(spread.dtype).tiny)",
        "spread / wanted",
        test_batchnorm.test_rescaling_undoes_gates,
    ),
    Plant(
        "closed units scaled up",
        "attacks.batchnorm",
        "(spread > CLOSED * wanted) & (wanted > 0)",
        "wanted > 0",
        test_batchnorm.test_a_closed_unit_stays_closed,
    ),
    Plant(
        "KL the other way round",
        "metrics.divergence",
        "xlogy(p, p) - torch.special.xlogy(p, q)",
        "xlogy(q, q) - torch.special.xlogy(q, p)",
        test_metrics.test_js_by_hand,
    ),
    Plant(
        "half of JS",
        "metrics.divergence",
        "(_kl(p, m) + _kl(q, m)) / 2",
        "(_kl(p, m) + _kl(q, m)) / 4",
        test_metrics.test_js_of_opposite_distributions_is_the_largest_there_is,
    ),
    Plant(
        "one side of JS", "metrics.divergence", "(_kl(p, m) + _kl(q, m)) / 2", "_kl(p, m)", test_metrics.test_js_by_hand
    ),
    Plant(
        "the mean of distances for the distance of means",
        "metrics.divergence",
        "(p.mean(0) - q.mean(0)).abs().sum()",
        "(p - q).abs().sum(1).mean()",
        test_metrics.test_total_variation_is_between_the_means,
    ),
    Plant(
        "L1 for total variation",
        "metrics.divergence",
        ".abs().sum() / 2).item()",
        ".abs().sum()).item()",
        test_metrics.test_total_variation_is_between_the_means_by_hand,
    ),
    Plant(
        "ZRF without 1 -",
        "metrics.zrf",
        "return 1 - js_divergence(p, random).mean()",
        "return js_divergence(p, random).mean()",
        test_metrics.test_zrf_by_hand,
    ),
    Plant(
        "ZRF as a sum",
        "metrics.zrf",
        "js_divergence(p, random).mean()",
        "js_divergence(p, random).sum()",
        test_metrics.test_zrf_is_the_mean_over_images,
    ),
    Plant(
        "the published code mended",
        "metrics.zrf",
        "torch.special.xlogy(m, m) - m * other.log()",
        "torch.special.xlogy(other, other) - other * m.log()",
        test_metrics.test_zrf_of_the_published_code_by_hand,
    ),
    Plant(
        "squares for distances",
        "metrics.activation_distance",
        "(p - q).norm(dim=1)",
        "(p - q).square().sum(1)",
        test_metrics.test_activation_distances_by_hand,
    ),
    Plant(
        "RMS as a mean",
        "metrics.activation_distance",
        ".square().mean().sqrt()",
        ".mean()",
        test_metrics.test_activation_distances_by_hand,
    ),
    Plant(
        "CKA without centring",
        "metrics.cka",
        "t.double() - t.double().mean(0)",
        "t.double()",
        test_metrics.test_cka_by_hand,
    ),
    Plant(
        "CKA without its scale's second factor",
        "metrics.cka",
        "(x.T @ x).norm() * (y.T @ y).norm()",
        "(x.T @ x).norm() ** 2",
        test_metrics.test_cka_of_two_columns_by_hand,
    ),
    Plant(
        "CKA's root",
        "metrics.cka",
        "((y.T @ x).square().sum() / scale)",
        "((y.T @ x).norm() / scale)",
        test_metrics.test_cka_of_two_columns_by_hand,
    ),
    Plant(
        "AIN upside down",
        "metrics.anamnesis",
        "return unlearned_steps / retrained_steps",
        "return retrained_steps / max(unlearned_steps, 1)",
        test_metrics.test_anamnesis_index,
    ),
    Plant(
        "relearned at the next step measured",
        "attacks.anamnesis",
        "steps[i - 1] + (steps[i] - steps[i - 1]) * (target - before) / (after - before)",
        "float(steps[i])",
        test_anamnesis.test_relearn_steps_half_way,
    ),
    Plant(
        "the interval of a mean",
        "audit.interval",
        "variance * (1 + 1 / n)",
        "variance / n",
        test_interval.test_interval_of_three_by_hand,
    ),
    Plant(
        "variance by n",
        "audit.interval",
        "for value in self.values) / (n - 1)",
        "for value in self.values) / n",
        test_interval.test_interval_of_two_by_hand,
    ),
    Plant(
        "one-sided quantile",
        "audit.interval",
        "(1 + COVERAGE) / 2",
        "COVERAGE",
        test_interval.test_interval_of_two_by_hand,
    ),
    Plant(
        "no resolution",
        "audit.interval",
        ", self.resolution)",
        ", 0.0)",
        test_interval.test_oracles_that_agree_leave_what_the_images_can_show,
    ),
    Plant(
        "more is better",
        "audit.interval",
        'above == (knows == "more")',
        'above == (knows == "less")',
        test_interval.test_verdicts_by_side,
    ),
    Plant(
        "an oracle among its own judges",
        "audit.audit",
        "if oracle is not subject.network",
        "if True",
        test_audit.test_each_oracle_is_compared_with_the_others_alone,
    ),
    Plant(
        "the held-out oracle is not asked",
        "audit.audit",
        "not in (WITHIN, UNJUDGED)",
        "in ()",
        test_audit.test_an_attack_that_an_oracle_fails_is_broken,
    ),
)


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """A scope in which the module's functions and classes are those of its changed source; the file stays as it is."""
    module = importlib.import_module(f"memmod.evaluation.{plant.module}")
    source = Path(module.__file__).read_text()
    assert source.count(plant.snippet) == 1, f"{plant.snippet!r} is there {source.count(plant.snippet)} times"
    changed = types.ModuleType(module.__name__)
    changed.__file__ = module.__file__
    # dataclasses look their module up
    sys.modules[module.__name__] = changed
    try:
        exec(compile(source.replace(plant.snippet, plant.replacement), module.__file__, "exec"), vars(changed))
    finally:
        sys.modules[module.__name__] = module
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (types.FunctionType, type)) and value.__module__ == module.__name__
    }
    # where the test has them from: the module, and what it imported by name
    places = [vars(module), plant.test.__globals__]
    before = [(place, name, value) for place in places for name, value in own.items() if place.get(name) is value]
    try:
        for place, name, _ in before:
            place[name] = getattr(changed, name)
        yield
    finally:
        for place, name, value in before:
            place[name] = value
