"""Every catalogued balancer in every kind of loop and network: what the engine gives it, and what becomes of it."""

from __future__ import annotations

import copy
import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torchjd.aggregation
from tests.helpers import data, network, same, sgd, trainer, weights
from torch import Tensor, nn

import polytask as pt
from polytask.balancing import Evidence, Needs
from polytask.balancing.base import CotangentAggregator, JacobianAggregator
from polytask.catalog import Entry, catalog

MODES = ("exact", "features", "low_memory")
ENTRIES = catalog("balancer")
GIVEN = {"aggregator": lambda: torchjd.aggregation.UPGrad(), "bounds": lambda: 0.5}  # what has no default

every_balancer = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])


def built(entry: Entry, names: Sequence[str] = "abc") -> Any:
    """From defaults, told of the objectives."""
    needed = [
        name
        for name, parameter in list(inspect.signature(entry.cls.__init__).parameters.items())[1:]
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    balancer = entry.cls(**{name: GIVEN[name]() for name in needed})
    balancer.setup(list(names))
    return balancer


def refused_in(balancer: Any, mode: str) -> bool:
    """Whether a balancer cannot work in a mode, or the mode would save nothing."""
    if isinstance(balancer, pt.balancing.Aggregator):
        return mode == "low_memory" and isinstance(balancer, JacobianAggregator | CotangentAggregator)
    return mode != "exact" and Needs.NORMS in balancer.needs


PAIRS = [(entry, mode) for entry in ENTRIES for mode in MODES if not refused_in(built(entry), mode)]
every_balancer_in_its_modes = pytest.mark.parametrize(
    ("entry", "mode"), PAIRS, ids=[f"{entry.name}-{mode}" for entry, mode in PAIRS]
)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(3, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x[:, None].expand(-1, 3, -1))[0][:, -1]


class Tied(nn.Module):
    """One weight in two layers of the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight = self.middle.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


class Pair(nn.Module):
    """Features that are a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 6), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.left(x)), torch.tanh(self.right(x))


class Partial(nn.Module):
    """A branch that one task alone reaches, and a layer that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.common, self.branch, self.spare = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.common(x)), torch.tanh(self.branch(x))


class Net(nn.Module):
    """A trunk and one linear head for each of three tasks, in float64.

    Where features are a pair, the first task sees both and the others the first only if the trunk says so.
    """

    def __init__(self, trunk: Callable[[], nn.Module], seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.trunk = trunk()
            self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in "abc"})
        self.double()

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        z = self.trunk(x)
        return z if isinstance(z, tuple) else (z,)

    def losses(self, x: Tensor, names: Sequence[str] = "abc") -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        features = self.features(x)
        found = {}
        for k, name in enumerate(names):
            seen = features if name == "a" or not isinstance(self.trunk, Partial) else features[:1]
            target = (k + 1) * x[:, "abc".index(name)].tanh()
            found[name] = (self.heads[name](sum(seen)).squeeze(1) - target).square().mean()
        return found, features


TRUNKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh()),
    "GRU": lambda: Recurrent(nn.GRU),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "norm": lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 12), nn.Dropout(0.3), nn.Linear(12, 6)),
    "tied": Tied,
    "pair": Pair,
    "partial": Partial,
}


def inputs(size: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def flat(parameters: Any, like: Any = None) -> Tensor:
    return torch.cat([torch.zeros(p.numel()).to(p) if p.grad is None else p.grad.flatten() for p in parameters])


def by_hand(net: Net, balancer: Any, x: Tensor, mode: str) -> tuple[Tensor, dict[str, float]]:
    """What the shared gradient must be, from gradients taken one by one, and the objectives' weights."""
    losses, features = net.losses(x)
    shared = list(net.trunk.parameters())
    rows, cotangents = [], []
    for loss in losses.values():
        pulled = torch.autograd.grad(loss, [*shared, *features], retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(pulled, [*shared, *features], strict=True)]
        rows.append(torch.cat([part.flatten() for part in parts[: len(shared)]]))
        cotangents.append(torch.cat([part.flatten(1) for part in parts[len(shared) :]], dim=1).flatten())
    jacobian, boundary = torch.stack(rows), torch.stack(cotangents)
    stand_in = mode == "features" and isinstance(balancer, pt.balancing.Aggregator)
    evidence = Evidence(list(losses), list(losses.values()), boundary if stand_in else jacobian)
    at_boundary = isinstance(balancer, CotangentAggregator)
    if at_boundary:
        evidence = Evidence(list(losses), cotangents=boundary, examples=len(x))
    found = balancer.combine(evidence)
    found = found.double() if isinstance(found, Tensor) else torch.tensor(found, dtype=torch.float64)
    if not isinstance(balancer, JacobianAggregator | CotangentAggregator):
        return found @ jacobian, dict(zip(losses, found.tolist(), strict=True))
    alone = dict.fromkeys(losses, 1.0)
    if not at_boundary and mode != "features":
        return found, alone
    pieces = found.view(len(x), -1).split([f.shape[1] for f in features], dim=1)
    pulled = torch.autograd.grad(features, shared, pieces, allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()).double() if g is None else g.flatten() for g, p in zip(pulled, shared, strict=True)]
    ), alone


@pytest.mark.parametrize("trunk", TRUNKS)
@every_balancer_in_its_modes
def test_the_engine_gives_what_its_gradients_taken_one_by_one_give(entry: Entry, trunk: str, mode: str):
    """The balancer's answer to gradients taken by hand, in every network; twice, so that state goes along."""
    net, balancer, twin = Net(TRUNKS[trunk]), built(entry), built(entry)
    for step in range(2):
        x = inputs(seed=step)
        net.zero_grad()
        torch.manual_seed(step)  # of the dropout
        losses, features = net.losses(x)
        pt.balance(losses, shared=net.trunk, balancer=balancer, gradients=mode, features=features)
        torch.manual_seed(step)
        expected, chosen = by_hand(net, twin, x, mode)
        torch.testing.assert_close(flat(net.trunk.parameters()), expected, rtol=1e-6, atol=1e-9)
        own = (
            {
                name: torch.autograd.grad(loss, list(net.heads[name].parameters()))
                for name, loss in net.losses(x)[0].items()
            }
            if trunk != "dropout"
            else {}
        )
        for name, gradients in own.items():
            factor = 1.0 if isinstance(balancer, pt.balancing.Aggregator) else chosen[name]
            for p, gradient in zip(net.heads[name].parameters(), gradients, strict=True):
                torch.testing.assert_close(p.grad, factor * gradient, rtol=1e-6, atol=1e-9)


@every_balancer_in_its_modes
def test_several_features_are_their_concatenation(entry: Entry, mode: str):
    """An example's features belong together, in however many tensors they come."""
    found = []
    for joined in (False, True):
        net, balancer = Net(TRUNKS["pair"]), built(entry)
        for step in range(3):  # what was learned goes along
            net.zero_grad()
            x = inputs(seed=step)
            features = net.features(x)
            features = (torch.cat(features, dim=1),) if joined else features
            left, right = features[0].split(6, dim=1) if joined else features
            losses = {
                name: (net.heads[name](left + k * right).squeeze(1) - x[:, k]).square().mean()
                for k, name in enumerate("abc")
            }
            pt.balance(losses, shared=net.trunk, balancer=balancer, gradients=mode, features=features)
        found.append(flat(net.trunk.parameters()))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@every_balancer
def test_a_mode_that_would_not_be_heeded_is_refused_at_the_door(entry: Entry):
    for mode in MODES:
        balancer = built(entry)
        if not refused_in(balancer, mode):
            trainer(balancer=balancer, gradients=mode)
            continue
        for door in (
            lambda balancer=balancer, mode=mode: trainer(balancer=balancer, gradients=mode),
            lambda balancer=balancer, mode=mode: pt.Accumulator(
                shared=nn.Linear(2, 2), balancer=balancer, gradients=mode
            ),
        ):
            with pytest.raises(ValueError, match=f"gradients='{mode}' .*found {entry.name}, which"):
                door()


@every_balancer_in_its_modes
def test_what_no_task_reaches_is_left_without_a_gradient(entry: Entry, mode: str):
    """As after `backward`: an optimizer with momentum or weight decay would move it at a gradient of zero."""
    net, balancer = Net(Partial), built(entry)
    losses, features = net.losses(inputs())
    pt.balance(losses, shared=net.trunk, balancer=balancer, gradients=mode, features=features)
    assert all(p.grad is None for p in net.trunk.spare.parameters())
    assert all(p.grad is not None for p in (*net.trunk.common.parameters(), *net.trunk.branch.parameters()))


@every_balancer_in_its_modes
def test_accumulated_batches_equal_the_concatenated_one(entry: Entry, mode: str):
    results = []
    for parts in (1, 3):
        net, balancer = Net(TRUNKS["plain"]), built(entry)
        for step in range(2):  # what was learned from one step goes into the next
            net.zero_grad()
            work = pt.Accumulator(shared=net.trunk, balancer=balancer, gradients=mode)
            for part in inputs(seed=step).chunk(parts):
                losses, features = net.losses(part)
                work.add({name: loss / parts for name, loss in losses.items()}, features)
            work.finish()
        results.append(flat(net.parameters()))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-8)


@every_balancer
def test_accumulating_trains_as_larger_batches_do(entry: Entry):
    found = []
    for size, accumulate in ((8, 1), (4, 2)):
        fit = trainer(network(names="abc"), "abc", balancer=built(entry), batch_size=size, accumulate=accumulate)
        fit.fit(data(22, "abc"), epochs=2)  # 22 examples: the last step is smaller
        found.append(weights(fit.model))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if not issubclass(e.cls, CotangentAggregator)], ids=lambda entry: entry.name
)
def test_tied_heads_and_a_module_without_boundary(entry: Entry):
    """A weight that two heads share gets the sum of what either would give it; no boundary changes nothing."""
    found = []
    for form in ("hard", "partitioned"):
        model = network(form=form)
        own = model.heads if form == "hard" else model.module.tops
        own["a"][0].weight = own["b"][0].weight
        x, y = data()
        run = trainer(model, balancer=built(entry, "ab"))
        run.fit(pt.Arrays(x, y, batch_size=8, shuffle=False), epochs=1)
        found.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def compiled() -> Net:
    """One for all balancers: to compile takes longer than all else, and torch stops compiling after some networks."""
    net = Net(TRUNKS["plain"])
    net.trunk.compile(backend="aot_eager")
    return net


@every_balancer_in_its_modes
def test_a_compiled_trunk_gives_the_same(entry: Entry, mode: str, compiled: Net):
    found = []
    for net in (Net(TRUNKS["plain"]), compiled):
        balancer = built(entry)
        net.zero_grad()
        losses, features = net.losses(inputs())
        pt.balance(losses, shared=net.trunk, balancer=balancer, gradients=mode, features=features)
        found.append(flat(net.parameters()))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def _under_autocast(entry: Entry, dtype: torch.dtype | None, scale: float | None, mode: str) -> tuple[Tensor, Tensor]:
    """The gradients of two steps and the weights of the second."""
    net, balancer = Net(TRUNKS["plain"]).float(), built(entry)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    used = torch.empty(0)
    for step in range(2):
        net.zero_grad()
        x = inputs(64, seed=step).float()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            losses, features = net.losses(x)
        used = pt.balance(
            {name: loss.float() for name, loss in losses.items()}, shared=net.trunk, balancer=balancer,
            gradients=mode, features=features, scaler=scaler,
        )  # fmt: skip
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    return flat(net.parameters()) / (scale or 1.0), used


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, None), (torch.float16, None), (torch.float16, 256.0)])
@every_balancer_in_its_modes
def test_autocast_and_loss_scaling(entry: Entry, dtype: torch.dtype, scale: float | None, mode: str):
    """Half precision is near single, and scaled gradients are compared unscaled: the weights are those of none."""
    exact, full_weights = _under_autocast(entry, None, None, mode)
    half, half_weights = _under_autocast(entry, dtype, scale, mode)
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.02
    assert (half - exact).norm() <= tolerance * exact.norm()
    torch.testing.assert_close(half_weights, full_weights, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("entry", "mode"),
    [(e, m) for e, m in PAIRS if issubclass(e.cls, pt.balancing.Aggregator) and built(e).needs != Needs.NOTHING],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_scaled_step_that_overflows_teaches_nothing(entry: Entry, mode: str):
    """The balancer is not asked where gradients are at stake, and the optimizer's step is skipped."""
    net, balancer = Net(TRUNKS["plain"]).float(), built(entry)
    optimizer, scaler = sgd(0.1)(net.parameters()), torch.amp.GradScaler("cpu", init_scale=1e38)
    before, state = weights(net), copy.deepcopy(balancer.state_dict())
    losses, features = net.losses(inputs().float())
    losses = {name: 1e4 * loss for name, loss in losses.items()}
    pt.balance(losses, shared=net.trunk, balancer=balancer, gradients=mode, features=features, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1e38
    assert same(weights(net), before)
    assert same(balancer.state_dict(), state)


@every_balancer
def test_half_precision_in_the_trainer(entry: Entry):
    found = []
    for precision in ("32-true", "bf16-mixed"):
        run = trainer(network(), balancer=built(entry, "ab"), precision=precision, optimizer=sgd(0.01))
        history = run.fit(data(64), epochs=2)
        found.append(torch.cat([value.flatten() for value in weights(run.model).values()]))
        assert history.column("train/loss")[1] < history.column("train/loss")[0] * 1.05
    assert (found[0] - found[1]).norm() <= 0.01 * found[0].norm()


class Recording(torch.optim.SGD):
    """SGD that keeps what it was given."""

    def __init__(self, parameters: Any, seen: list[Tensor]) -> None:
        super().__init__(parameters, lr=0.0)
        self.seen = seen

    def step(self, closure: Any = None) -> None:
        self.seen.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]))
        super().step()


@every_balancer
def test_clipping_comes_after_balancing(entry: Entry):
    """The clipped gradient is the balanced one, shortened: had the tasks' been clipped, it would point elsewhere."""
    seen: dict[float | None, list[Tensor]] = {}
    for limit in (None, 0.05):
        steps = seen[limit] = []
        run = trainer(
            network(names="abc"), "abc", balancer=built(entry), clip_norm=limit,
            optimizer=lambda p, steps=steps: Recording(p, steps),
        )  # fmt: skip
        run.fit(data(24, "abc"), epochs=1)
    for free, clipped in zip(seen[None], seen[0.05], strict=True):
        assert free.norm() > 0.05
        torch.testing.assert_close(clipped, 0.05 * free / free.norm(), rtol=1e-3, atol=1e-6)


@every_balancer
def test_one_task_gets_its_plain_gradient_in_any_loop(entry: Entry):
    net, balancer = Net(TRUNKS["plain"]), built(entry, "a")
    for step in range(3):
        net.zero_grad()
        losses, features = net.losses(inputs(seed=step), "a")
        assert pt.balance(losses, shared=net.trunk, balancer=balancer, features=features).tolist() == [1.0]
        found = flat(net.trunk.parameters())
        net.zero_grad()
        net.losses(inputs(seed=step), "a")[0]["a"].backward()
        torch.testing.assert_close(found, flat(net.trunk.parameters()), rtol=1e-6, atol=1e-9)
        if Needs.LOSSES_AFTER in balancer.needs:
            balancer.after({"a": losses["a"].detach()})


@every_balancer
def test_what_becomes_of_one_task_is_documented(entry: Entry):
    text = " ".join(inspect.getdoc(entry.cls).split())
    assert re.search(r"([Oo]ne|[Ss]ingle) (task|objective)|plain sum of losses|weighted sum|[Aa]ny aggregator", text), (
        entry.name
    )


# State, by name


def _step(net: Net, optimizer: Any, balancer: Any, names: str, seed: int) -> None:
    optimizer.zero_grad()
    losses, features = net.losses(inputs(seed=seed), names)
    pt.balance(losses, shared=net.trunk, balancer=balancer, features=features)
    optimizer.step()
    if Needs.LOSSES_AFTER in balancer.needs:
        with torch.no_grad():
            balancer.after(net.losses(inputs(seed=seed), names)[0])
    row = {f"train/{name}/loss": (seed + 2.0) ** -k for k, name in enumerate(names, 1)}
    balancer.observe(row)


def _about(state: Any, name: str, within: bool = False) -> list[Any]:
    """All that a state holds under a key."""
    if isinstance(state, Mapping):
        return [part for key, value in state.items() for part in _about(value, name, within or key == name)]
    return [state] if within else []


NAMES_OF_STEPS = ("ab", "abc", "c", "bc", "a", "cab", "b", "abc")  # c comes later, each is absent at times


@every_balancer
def test_tasks_come_and_go_and_what_was_learned_of_them_stays(entry: Entry):
    """A balancer that nobody told of the objectives meets them as they come."""
    net, balancer = Net(TRUNKS["plain"]), built(entry, ())
    optimizer = sgd(0.05)(net.parameters())
    for seed, names in enumerate(NAMES_OF_STEPS):
        before = copy.deepcopy(balancer.state_dict())
        _step(net, optimizer, balancer, names, seed)
        after = balancer.state_dict()
        for name in set("abc") - set(names):
            known = _about(before, name)
            assert same(_about(after, name), known), f"what was learned of {name} changed in its absence"
        assert all(torch.isfinite(p).all() for p in net.parameters())
    assert set(balancer.objectives) == set("abc")


@every_balancer
def test_an_own_loop_resumes_to_the_bit(entry: Entry):
    """With tasks that come and go, through a file that cannot run code."""

    def run(upto: int, start: int = 0, file: io.BytesIO | None = None) -> tuple[Any, ...]:
        net, balancer = Net(TRUNKS["plain"]), built(entry)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        parts = (net, balancer, optimizer)
        if file is not None:
            file.seek(0)
            for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
                part.load_state_dict(state)
        for seed in range(start, upto):
            _step(net, optimizer, balancer, NAMES_OF_STEPS[seed], seed)
        return parts

    whole, file = run(8), io.BytesIO()
    torch.save([part.state_dict() for part in run(4)], file)
    again = run(8, 4, file)
    for one, other in zip(whole, again, strict=True):
        assert same(one.state_dict(), other.state_dict())


def _names_in(state: Any) -> set[str]:
    """Objectives that a state is about: as keys or in lists."""
    if isinstance(state, Mapping):
        return ({"a", "b", "c"} & set(state)).union(*(_names_in(value) for value in state.values()))
    if isinstance(state, (list, tuple)):
        return set().union(*({part} if part in ("a", "b", "c") else _names_in(part) for part in state))
    return set()


def _learned(entry: Entry, names: str) -> Any:
    net, balancer = Net(TRUNKS["plain"]), built(entry, names)
    optimizer = sgd(0.05)(net.parameters())
    for seed in range(3):
        _step(net, optimizer, balancer, names, seed)
    return balancer


@pytest.mark.parametrize("others", ["ab", "a", "abd", "xyz"])
@every_balancer
def test_a_state_of_other_objectives_is_refused_in_words(entry: Entry, others: str):
    state = copy.deepcopy(_learned(entry, "abc").state_dict())
    if not _names_in(state):
        return  # nothing in it is about objectives
    balancer = built(entry, others)
    before = copy.deepcopy(balancer.state_dict())
    with pytest.raises(ValueError, match=r"a balancer's state must be of the same objectives, saved \['a', 'b', 'c'\]"):
        balancer.load_state_dict(state)
    assert same(balancer.state_dict(), before)


@every_balancer
def test_a_checkpoint_of_other_tasks_is_refused_in_words(entry: Entry, tmp_path: Any):
    trainer(network(names="abc"), "abc", balancer=built(entry), callbacks=[pt.callbacks.Checkpoint(tmp_path)]).fit(
        data(names="abc"), epochs=1
    )
    with pytest.raises(ValueError, match="must come from the same model, data, settings"):
        trainer(network(), balancer=built(entry, "ab"), callbacks=[pt.callbacks.Checkpoint(tmp_path)]).fit(
            data(), epochs=2, resume=tmp_path / "last.ckpt"
        )


@every_balancer
def test_a_set_up_that_was_refused_is_refused_again(entry: Entry):
    """A balancer does not take itself for set up after settings that do not fit."""
    preference = {"a": 1.0, "b": 0.0}
    options = [
        name
        for name in inspect.signature(entry.cls).parameters
        if name in ("preference", "weights", "leak", "lower_bounds")
    ]
    for option in options:
        balancer = entry.cls(**{option: preference})
        net = Net(TRUNKS["plain"])
        for _ in range(2):
            losses, features = net.losses(inputs())
            with pytest.raises(ValueError, match=rf"`{option}` must name every objective, found none for `c`"):
                pt.balance(losses, shared=net.trunk, balancer=balancer, features=features)
        balancer = entry.cls(**{option: preference})
        balancer.setup(["a", "b"])  # told by the loop's owner, so that the first step may lack one
        losses, features = net.losses(inputs(), "b")
        pt.balance(losses, shared=net.trunk, balancer=balancer, features=features)


@every_balancer
def test_evidence_that_lacks_what_a_method_needs_is_refused(entry: Entry):
    """Losses alone where it needs gradients, gradients alone where it needs losses."""
    names = ["a", "b"]
    values, jacobian = [torch.tensor(1.0), torch.tensor(2.0)], torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    balancer = built(entry, names)
    if balancer.needs & (Needs.GRAMIAN | Needs.JACOBIAN):
        with pytest.raises(ValueError, match="a method that needs gradients must be given `jacobian`, found neither"):
            balancer.combine(Evidence(names, values))
    if Needs.JACOBIAN in balancer.needs:
        with pytest.raises(ValueError, match="must be given `jacobian`, found `gram` alone"):
            balancer.combine(Evidence(names, values, gram=jacobian @ jacobian.T))
    if Needs.COTANGENTS in balancer.needs:
        with pytest.raises(
            ValueError, match="must be given `cotangents`, the gradients at the shared features, found none"
        ):
            balancer.combine(Evidence(names, values, jacobian))
    if Needs.LOSSES in balancer.needs:
        with pytest.raises(ValueError, match="a method that needs losses must be given `values`, found none"):
            balancer.combine(Evidence(names, jacobian=jacobian))
    with pytest.raises(ValueError, match="there must be at least one objective, found none"):
        balancer.combine(Evidence([], [], jacobian[:0]))
