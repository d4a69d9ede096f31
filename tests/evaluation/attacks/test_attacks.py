"""Every attack on digits without the 8: what knows the class fails it, an oracle that it never met passes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from memmod.data import TensorSplit
from memmod.errors import DataError, RunError
from memmod.evaluation.attacks import ATTACKS, Case, Subject, get_attack
from memmod.model import modulate
from memmod.zoo import create_model
from tests.evaluation.attacks.problem import CLASSES, FORGET, with_gates

pytestmark = pytest.mark.slow

# attack, figure, subject that fails, by how much more than the held-out oracle: about half of what was measured.
TABLE = (
    ("probes", "probe/recall/penultimate", "original", 0.01),
    ("probes", "nearest_mean/recall/penultimate", "original", 0.04),
    ("probes", "knn/recall/penultimate", "original", 0.03),
    ("probes", "knn/recall/penultimate", "masked", 0.03),
    ("prototype", "acc_forget/1", "original", 0.06),
    ("prototype", "acc_forget/1", "baked", 0.02),
    ("batchnorm", "acc_forget/retained", "original", 0.5),
    ("batchnorm of the base", "acc_forget/retained", "baked", 0.2),
    ("batchnorm of the base", "acc_forget/all", "baked", 0.2),
    ("rescaling", "acc_forget", "original", 0.5),
    ("quantisation", "acc_forget/int8/tensor", "original", 0.5),
    ("quantisation", "acc_forget/int4/channel", "masked", 0.5),
    ("relearning", "after_5/10-shot/head", "original", 0.4),
    ("relearning", "after_5/10-shot/all", "original", 0.5),
    ("relearning", "after_5/10-shot/all", "baked", 0.2),
    ("relearning", "mean/10-shot/all", "baked", 0.1),
)


@pytest.mark.parametrize(("attack", "figure", "subject", "margin"), TABLE)
def test_what_knows_the_class_gives_more(digits, attack, figure, subject, margin):
    found = get_attack(attack)
    assert found.knows.get(figure, found.knows[""]) == "more"
    fails, passes = (found.run(s, digits.case)[figure] for s in (getattr(digits, subject), digits.held_out))
    assert fails.value > passes.value + margin
    assert 0 < fails.resolution <= 1 / 87


def test_what_knows_the_class_relearns_at_once(digits):
    attack = get_attack("anamnesis")
    original, held_out = (attack.run(s, digits.case) for s in (digits.original, digits.held_out))
    assert original["AIN"].value == original["steps"].value == 0.0
    assert held_out["AIN"].value > 0.7
    assert attack.meaning("AIN") == "less"


def test_where_the_forgetting_sits(digits):
    subjects = digits.original, digits.masked, digits.baked
    found = {s.name: get_attack("head swap").run(s, digits.case)["acc_forget"].value for s in subjects}
    assert found["original"] == found["logit mask"] > 0.9
    assert found["baked"] < 0.1


def test_a_class_forgotten_by_gates_is_answered_otherwise_than_by_oracles(digits):
    figure = {s.name: get_attack("shadow").run(s, digits.case)["class/shadow"] for s in (digits.baked, digits.held_out)}
    oracle = get_attack("shadow").run(Subject("oracle", digits.case.oracles[0]), replace_oracle(digits))["class/shadow"]
    assert abs(figure["held-out oracle"].value - oracle.value) < 0.04
    assert figure["baked"].value < figure["held-out oracle"].value - 0.07


def replace_oracle(digits) -> Case:
    return replace(digits.case, oracles=(digits.held_out.network,))


def test_the_subject_is_not_its_own_shadow(digits):
    oracle = Subject("oracle", digits.case.oracles[0])
    assert get_attack("shadow").applies(oracle, digits.case) == "there is no oracle beside it"
    both = replace(digits.case, oracles=(digits.held_out.network, oracle.network))
    assert get_attack("shadow").run(oracle, both) == get_attack("shadow").run(oracle, replace_oracle(digits))


def test_a_network_that_memorised_its_images_fails_membership(digits):
    """Images with labels drawn anew have to be learned one by one."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(240, 1, 8, 8, generator=generator), torch.arange(4).repeat(60)
    train, test = (
        TensorSplit(part, own, 1.0, (0.0,), (1.0,))
        for part, own in ((images[:120], labels[:120]), (images[120:], labels[120:]))
    )
    nets = [memorised(train, seen) for seen in (labels[:120] >= 0, labels[:120] != 2, labels[:120] != 2)]
    case = Case((2,), 4, train, test, digits.case.training, nets[0], (nets[1],), quick=True)
    original, held_out = Subject("original", nets[0]), Subject("held-out oracle", nets[2])
    for attack, figures in (
        ("membership", ("loss", "confidence", "entropy", "modified_entropy")),
        ("shadow", ("rmia",)),
    ):
        fails, passes = (get_attack(attack).run(s, case) for s in (original, held_out))
        for name in figures:
            assert fails[f"auc/{name}"].value > 0.75 > passes[f"auc/{name}"].value
            low, high = fails[f"auc/{name}"].interval
            assert low <= fails[f"auc/{name}"].value <= high


def memorised(train: TensorSplit, seen: torch.Tensor) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4)
        )
    x, y = train.images[seen], train.labels[seen]
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval()


def test_gates_that_close_few_units_are_found_out(digits):
    weak = Subject("weak gates", digits.baked.network, with_gates(digits.baked.wf, -30.0, 0.02))
    strong = Subject("all closed", digits.baked.network, with_gates(digits.baked.wf, -30.0, 1.0))
    found, closed = (get_attack("gate flip").run(s, digits.case) for s in (weak, strong))
    assert found["acc_forget/5%"].value > 0.9 > closed["acc_forget/25%"].value + 0.5
    own = get_attack("gate flip").run(digits.baked, digits.case)
    values = [own[f"acc_forget/{share}%"].value for share in (1, 5, 10, 25)]
    assert values[0] < 0.1 and values[-1] > 0.9 and values == sorted(values)
    assert abs(own["leakage"].value) < 0.05


def test_a_row_that_takes_a_class_along_leaks(digits):
    wf = copy.deepcopy(digits.baked.wf)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(memory[FORGET].expand_as(memory))
    found = get_attack("gate flip").run(Subject("one row for all", digits.baked.network, wf), digits.case)
    assert found["leakage"].value > 0.9


def test_memories_that_can_be_trained_back(digits):
    weak = Subject("weak gates", digits.baked.network, with_gates(digits.baked.wf, -1.0, 0.1))
    strong = Subject("all closed", digits.baked.network, with_gates(digits.baked.wf, -30.0, 1.0))
    found, closed = (get_attack("relearning memories").run(s, digits.case) for s in (weak, strong))
    assert found["mean/10-shot/memories"].value > closed["mean/10-shot/memories"].value + 0.5


def test_what_does_not_apply(digits):
    for name in ("gate flip", "relearning memories"):
        assert get_attack(name).applies(digits.original, digits.case) == "it has no memories"
        assert get_attack(name).level == "L2"
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    assert get_attack("batchnorm").applies(digits.original, replace(digits.case, original=plain))
    assert get_attack("batchnorm").applies(digits.original, digits.case) is None


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_it_is_deterministic_and_changes_nothing(digits, attack):
    subject = digits.baked
    assert attack.applies(subject, digits.case) is None
    networks = (subject.network, subject.wf, digits.case.original, *digits.case.oracles)
    before = [{name: t.clone() for name, t in network.state_dict().items()} for network in networks]
    modes = [[module.training for module in network.modules()] for network in networks]
    draws = torch.get_rng_state()
    first = attack.run(subject, digits.case)
    assert first == attack.run(subject, digits.case)
    assert torch.equal(draws, torch.get_rng_state())
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(state[name], t) for name, t in network.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert all(p.grad is None for p in network.parameters())
    assert modes == [[module.training for module in network.modules()] for network in networks]
    assert attack.cost(digits.case) > 0 and attack.source and attack.version >= 1
    assert all(0 <= m.value <= 1 for name, m in first.items() if name not in ("leakage", "AIN", "steps"))


@pytest.mark.parametrize("name", ["membership", "shadow", "probes", "prototype", "relearning"])
def test_too_few_images(digits, name):
    train = digits.case.train
    own = (train.labels == FORGET).nonzero().flatten()
    few = train.subset(torch.cat(((train.labels != FORGET).nonzero().flatten(), own[:4])))
    needed = {"membership": 10, "shadow": 20, "probes": 10, "prototype": 5, "relearning": 10}[name]
    with pytest.raises(DataError, match=f"{name}' needs at least {needed} training images of class 8, but there are 4"):
        get_attack(name).run(digits.original, replace(digits.case, train=few))


def test_an_unknown_attack():
    with pytest.raises(RunError, match="unknown attack 'guess'"):
        get_attack("guess")
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("name", ["vgg", "vit"])
def test_sets_and_other_networks(digits, name):
    """Of untrained networks, whose figures are only counted."""
    original, oracle, other = (create_model(name, CLASSES, (1, 8, 8), seed=seed).eval() for seed in range(3))
    case = replace(digits.case, forget=(3, FORGET), original=original, oracles=(oracle,))
    wf = modulate(other, CLASSES, case.test.batch(torch.arange(2)))
    subject = Subject("other", other, wf)
    for attack in ATTACKS:
        if attack.name.startswith("batchnorm") and name == "vit":
            assert attack.applies(subject, case) == "the network has no BatchNorm"
            continue
        if attack.name == "anamnesis":
            # an original that knows nothing has nothing to relearn
            with pytest.raises(DataError, match="relearn times"):
                attack.run(subject, case)
            continue
        found = attack.run(subject, case)
        shares = [m for figure, m in found.items() if figure not in ("AIN", "steps")]
        assert all(-1 <= m.value <= 1 for m in shares) and all(m.resolution > 0 for m in found.values())
    numbers = torch.isin(case.test.labels, torch.tensor([3, FORGET])).nonzero().flatten()
    swapped = copy.deepcopy(other)
    (swapped.head if name == "vit" else swapped.fc).load_state_dict(
        (original.head if name == "vit" else original.fc).state_dict()
    )
    with torch.no_grad():
        right = swapped(case.test.batch(numbers)).argmax(1) == case.test.labels[numbers]
    assert get_attack("head swap").run(subject, case)["acc_forget"].value == right.double().mean().item()
