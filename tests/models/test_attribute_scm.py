import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softcft.graph import CausalGraph, Intervention
from softcft.models.attribute_scm import AttributeSCM

# Every kind as a root and as a child of every kind, in an order that is not causal. Names that nn.ModuleDict refuses.
GRAPH = [
    {"name": "type", "kind": "categorical", "categories": ["a", "b", "c"], "parents": ["sex", "dose", "site"]},
    {"name": "v1.2", "kind": "continuous", "low": 0, "high": 1, "parents": ["type", "dose", "ill"]},
    {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["dose", "type", "sex"]},
    {"name": "sex", "kind": "binary", "categories": ["m", "f"]},
    {"name": "dose", "kind": "continuous", "low": 0, "high": 9, "unit": "mg"},
    {"name": "site", "kind": "categorical", "categories": ["x", "y"]},
]


@pytest.fixture
def scm() -> AttributeSCM:
    torch.manual_seed(0)
    model = AttributeSCM(GRAPH, num_bins=6, hidden_features=[16])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "root" in name:
                parameter.normal_()
            elif "logit" in name:
                parameter.mul_(3)  # strong effects, so that interventions show
    return model.eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def factual(scm: AttributeSCM, n: int = 500) -> Tensor:
    return scm.sample(n, generator=seeded(1))


def only(scm: AttributeSCM, encoded: Tensor, name: str) -> Tensor:
    return encoded[:, scm.causal_graph.slices[name]]


def with_root(logits: list[float]) -> AttributeSCM:
    """A model of one discrete variable with given logits; a single logit makes it binary."""
    kind = "binary" if len(logits) == 1 else "categorical"
    names = [str(i) for i in range(max(2, len(logits)))]
    model = AttributeSCM([{"name": "y", "kind": kind, "categories": names}])
    next(model.parameters()).data = torch.tensor([logits])
    return model


def random_intervention(graph: CausalGraph, n: int) -> Intervention:
    """None, one or several variables for each sample."""
    mask = torch.rand(n, len(graph), generator=seeded(2)) < 0.3
    columns = []
    for variable in graph.variables:
        if variable.kind == "continuous":
            columns.append(torch.rand(n, 1, generator=seeded(3)) * 2 - 1)
        else:
            index = torch.randint(len(variable.categories), (n,), generator=seeded(4))
            columns.append(F.one_hot(index, variable.width) if variable.kind == "categorical" else index[:, None])
    return Intervention(torch.cat(columns, dim=1).float(), mask)


# ---- abduction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_prediction_from_abducted_noise_gives_the_values_back(scm, dtype, tolerance):
    values = factual(scm, 5000).to(dtype)
    # The ends of the range are data too.
    values[:2, scm.causal_graph.slices["dose"]] = torch.tensor([[-1.0], [1.0]], dtype=dtype)
    scm = scm.to(dtype)
    again = scm.predict(scm.abduct(values, seeded(5)))
    assert again.dtype == dtype
    for variable in scm.causal_graph.variables:
        error = (only(scm, again, variable.name) - only(scm, values, variable.name)).abs().max()
        assert error <= (tolerance if variable.kind == "continuous" else 0), variable.name


@pytest.mark.parametrize("logits", [[-25.0], [-3.3], [0.0], [8.0], [-25.0, 3.0], [0.1, 0.2]])
@pytest.mark.parametrize("label", [0, -1])
def test_rounding_of_the_rarest_draws_does_not_flip_the_label(logits, label):
    model = with_root(logits)
    value = torch.tensor([[float(-label)]]) if len(logits) == 1 else torch.eye(len(logits))[[label]]
    edges = torch.linspace(-6, 6, 60)
    normal = torch.cartesian_prod(*[edges] * len(logits)).reshape(-1, len(logits))
    value = value.expand(len(normal), -1)
    noise = model.mechanisms[0].abduct(value, None, normal)
    assert noise.isfinite().all()
    assert torch.equal(model.predict(noise), value)


@pytest.mark.parametrize("logits", [[-1.0, -1.0], [-1.2, -0.36], [-2.0, 1.0], [0.3, -0.5, 2.0]])
def test_pooled_posterior_of_gumbel_noise_is_its_prior(logits):
    model = with_root(logits)
    noise = model.abduct(model.sample(200_000, generator=seeded(0)), seeded(1))
    euler = 0.5772157
    torch.testing.assert_close(noise.mean(0), torch.full((len(logits),), euler), atol=0.015, rtol=0)
    torch.testing.assert_close(noise.var(0), torch.full((len(logits),), math.pi**2 / 6), atol=0.04, rtol=0)
    # Independent across categories, as the prior is.
    assert (noise.T.corrcoef() - torch.eye(len(logits))).abs().max() < 0.01


@pytest.mark.parametrize("logit", [-3.0, 0.0, 1.5])
def test_pooled_posterior_of_logistic_noise_is_its_prior(logit):
    model = with_root([logit])
    values = model.sample(200_000, generator=seeded(0))
    assert values.mean().item() == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=0.005)
    noise = model.abduct(values, seeded(1))
    assert noise.mean().item() == pytest.approx(0, abs=0.015)
    assert noise.var().item() == pytest.approx(math.pi**2 / 3, abs=0.06)
    quantiles = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99])
    torch.testing.assert_close(noise[:100_000, 0].quantile(quantiles), quantiles.logit(), atol=0.1, rtol=0)


def test_abducted_noise_of_continuous_variables_is_normal_and_deterministic(scm):
    values = factual(scm, 20_000)
    first, second = scm.abduct(values, seeded(1)), scm.abduct(values, seeded(2))
    for name in ("dose", "v1.2"):
        noise = only(scm, first, name)
        assert torch.equal(noise, only(scm, second, name))
        assert abs(noise.mean()) < 0.03
        assert abs(noise.std() - 1) < 0.03


# ---- counterfactuals ----------------------------------------------------------------------------------------------


def test_null_intervention_returns_the_factual_values_bitwise(scm):
    values = factual(scm)
    null = scm.causal_graph.encode_do({}, len(values))
    assert torch.equal(scm.counterfactual(values, null), values)


def test_intervention_reaches_itself_and_descendants_and_nothing_else(scm):
    graph = scm.causal_graph
    values = factual(scm, 2000)
    for name, do in [("dose", 8.5), ("sex", "f"), ("type", "c"), ("ill", "yes"), ("v1.2", 0.9), ("site", "y")]:
        intervention = graph.encode_do({name: do}, len(values))
        moved = scm.counterfactual(values, intervention, seeded(3))
        assert torch.equal(only(scm, moved, name), only(scm, intervention.values, name))
        for other in graph.names:
            same = torch.equal(only(scm, moved, other), only(scm, values, other))
            assert same == (other not in graph.affected_by(name)), (name, other)


def test_doing_the_factual_value_changes_nothing(scm):
    values = factual(scm)
    for index in range(len(scm.causal_graph)):
        mask = torch.zeros(len(values), len(scm.causal_graph), dtype=torch.bool)
        mask[:, index] = True
        torch.testing.assert_close(scm.counterfactual(values, Intervention(values, mask)), values, atol=1e-5, rtol=0)


def test_several_variables_of_one_do_act_together(scm):
    graph = scm.causal_graph
    values = factual(scm, 2000)
    noise = scm.abduct(values, seeded(3))
    # "type" descends from "sex", and "ill" from both.
    do = {"sex": "f", "type": "b"}
    moved = scm.counterfactual(values, graph.encode_do(do, len(values)), seeded(3))
    assert graph.decode(moved)["sex"] == ["f"] * len(values)
    assert graph.decode(moved)["type"] == ["b"] * len(values)
    assert torch.equal(only(scm, moved, "dose"), only(scm, values, "dose"))
    # The child's mechanism, applied by hand to both parents' new values and its old noise.
    parents = torch.cat([only(scm, moved, parent) for parent in ("dose", "type", "sex")], dim=1)
    mechanism = scm.mechanisms[graph.names.index("ill")]
    assert torch.equal(only(scm, moved, "ill"), mechanism.predict(only(scm, noise, "ill"), parents))
    for name, value in do.items():
        alone = scm.counterfactual(values, graph.encode_do({name: value}, len(values)), seeded(3))
        assert not torch.equal(only(scm, alone, "v1.2"), only(scm, moved, "v1.2"))


def test_per_sample_interventions_equal_separate_calls(scm):
    values = factual(scm, 64)
    intervention = random_intervention(scm.causal_graph, 64)
    together = scm.counterfactual(values, intervention, [seeded(i) for i in range(64)])
    for i in range(64):
        one = Intervention(intervention.values[[i]], intervention.mask[[i]])
        alone = scm.counterfactual(values[[i]], one, seeded(i))
        torch.testing.assert_close(alone, together[[i]], atol=1e-5, rtol=0)


def test_columns_that_are_not_intervened_on_are_ignored(scm):
    values = factual(scm, 64)
    intervention = random_intervention(scm.causal_graph, 64)
    ignored = ~scm.causal_graph.expand(intervention.mask)
    garbage = Intervention(intervention.values.masked_fill(ignored, math.nan), intervention.mask)
    assert torch.equal(
        scm.counterfactual(values, garbage, seeded(0)), scm.counterfactual(values, intervention, seeded(0))
    )


def test_order_of_the_graph_does_not_matter(scm):
    graph = scm.causal_graph
    order = list(graph.causal_order)
    sorted_scm = AttributeSCM([graph.to_list()[graph.names.index(name)] for name in order], 6, [16])
    for name, mechanism in zip(order, sorted_scm.mechanisms, strict=True):
        mechanism.load_state_dict(scm.mechanisms[graph.names.index(name)].state_dict())
    columns = [k for name in order for k in range(graph.width)[graph.slices[name]]]
    values = factual(scm, 3000)
    torch.testing.assert_close(sorted_scm.log_prob(values[:, columns]), scm.log_prob(values))
    noise = scm.abduct(values, seeded(0))
    intervention = random_intervention(graph, len(values))
    swapped = Intervention(intervention.values[:, columns], intervention.mask[:, [graph.names.index(n) for n in order]])
    torch.testing.assert_close(
        sorted_scm.predict(noise[:, columns], swapped), scm.predict(noise, intervention)[:, columns]
    )


# ---- sampling -----------------------------------------------------------------------------------------------------


def test_samples_obey_interventions_and_non_descendants_keep_their_draw(scm):
    graph = scm.causal_graph
    free = scm.sample(1000, generator=seeded(0))
    done = scm.sample(1000, graph.encode_do({"type": "c"}, 1000), seeded(0))
    assert graph.decode(done)["type"] == ["c"] * 1000
    for name in ("sex", "dose", "site"):
        assert torch.equal(only(scm, done, name), only(scm, free, name))
    assert not torch.equal(only(scm, done, "ill"), only(scm, free, "ill"))
    assert not free.requires_grad


def test_generators_reproduce_and_are_the_only_randomness(scm):
    values = factual(scm)
    do = scm.causal_graph.encode_do({"dose": 8.5}, len(values))
    assert torch.equal(scm.sample(50, generator=seeded(7)), scm.sample(50, generator=seeded(7)))
    assert not torch.equal(scm.sample(50, generator=seeded(7)), scm.sample(50, generator=seeded(8)))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = scm.counterfactual(values, do, seeded(7))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, scm.counterfactual(values, do, seeded(7)))
    assert not torch.equal(first, scm.counterfactual(values, do, seeded(8)))
    # One generator per sample: a sample does not depend on its batch.
    batch = scm.sample(3, generator=[seeded(1), seeded(2), seeded(3)])
    torch.testing.assert_close(scm.sample(1, generator=seeded(2)), batch[[1]])


# ---- likelihood ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parents", [None, torch.tensor([[1.0, 0.3, 0.0, 0.0, 1.0]])])
def test_density_of_a_continuous_variable_integrates_to_one(parents):
    torch.manual_seed(0)
    graph = [
        {"name": "z", "kind": "continuous", "low": 0, "high": 1},
        {"name": "b", "kind": "binary", "categories": ["0", "1"]},
        {"name": "c", "kind": "categorical", "categories": ["0", "1", "2"]},
        {"name": "y", "kind": "continuous", "low": 0, "high": 1, "parents": ["b", "z", "c"]},
    ]
    scm = AttributeSCM(graph if parents is not None else graph[:1]).double()
    grid = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[:, None]
    if parents is None:
        density = scm.log_prob(grid).exp()
    else:
        z, rest = parents[:, 1:2], torch.cat([parents[:, :1], parents[:, 2:]], dim=1)
        values = torch.cat([torch.cat([z, rest], dim=1).double().expand(len(grid), -1), grid], dim=1)
        marginal = AttributeSCM(graph[:3]).double()
        marginal.load_state_dict({k: v for k, v in scm.state_dict().items() if not k.startswith("mechanisms.3")})
        density = (scm.log_prob(values) - marginal.log_prob(values[:, :-1])).exp()
    # A little mass lies in the sliver that predictions clamp to the ends of the range.
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=5e-3)


def test_density_agrees_with_samples(scm):
    # E[1 / p] over samples of one variable is the length of its support.
    dose = AttributeSCM([GRAPH[4]], num_bins=6)
    dose.mechanisms[0].load_state_dict(scm.mechanisms[4].state_dict())
    samples = dose.sample(100_000, generator=seeded(0))
    inside = samples.abs() < 0.8
    assert (inside[:, 0] * (-dose.log_prob(samples)).exp()).mean().item() == pytest.approx(1.6, abs=0.05)


def test_log_prob_of_discrete_variables_is_the_closed_form(scm):
    graph = scm.causal_graph
    values = factual(scm, 300)
    ill, type_, sex, site = (only(scm, values, name) for name in ("ill", "type", "sex", "site"))
    dose = only(scm, values, "dose")
    logit = scm.mechanisms[graph.names.index("ill")].logit.network(torch.cat([dose, type_, sex], dim=1))
    logits = scm.mechanisms[graph.names.index("type")].logits.network(torch.cat([sex, dose, site], dim=1))
    sex_logit = scm.mechanisms[graph.names.index("sex")].logit.root
    site_logits = scm.mechanisms[graph.names.index("site")].logits.root
    expected = (
        torch.distributions.Bernoulli(logits=logit).log_prob(ill)[:, 0]
        + torch.distributions.OneHotCategorical(logits=logits).log_prob(type_)
        + torch.distributions.Bernoulli(logits=sex_logit).log_prob(sex)[:, 0]
        + torch.distributions.OneHotCategorical(logits=site_logits).log_prob(site)
    )
    # What is left are the two densities.
    continuous = sum(
        scm.mechanisms[graph.names.index(name)].log_prob(only(scm, values, name), parents)
        for name, parents in [("dose", None), ("v1.2", torch.cat([type_, dose, ill], dim=1))]
    )
    torch.testing.assert_close(scm.log_prob(values), expected + continuous)
    assert torch.equal(scm(values), scm.log_prob(values))


def test_gradient_of_the_likelihood_reaches_every_parameter(scm):
    scm.log_prob(factual(scm)).mean().backward()
    for name, parameter in scm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_fitted_model_recovers_a_known_counterfactual_rate():
    # z = tanh(n / 2), y = [2 + 3 z + logistic > 0], hence under do(z = -0.8) a sample with y = 1 keeps it with
    # probability sigmoid(2 - 3 * 0.8) / sigmoid(2 + 3 z), and y = 0 never becomes 1.
    torch.manual_seed(0)
    graph = [
        {"name": "y", "kind": "binary", "categories": ["0", "1"], "parents": ["z"]},
        {"name": "z", "kind": "continuous", "low": 0, "high": 1},
    ]
    z = torch.tanh(torch.randn(8000, 1) / 2)
    y = torch.bernoulli(torch.sigmoid(2 + 3 * z))
    values = torch.cat([y, z], dim=1)
    scm = AttributeSCM(graph, hidden_features=[32])
    optimizer = torch.optim.Adam(scm.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -scm.log_prob(values[torch.randint(8000, (512,))]).mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        # Density of z: that of n, times dn/dz = 2 / (1 - z^2). Entropies of the truth, from the same data.
        n = 2 * torch.atanh(z)
        truth = torch.distributions.Normal(0, 1).log_prob(n) + (2 / (1 - z**2)).log()
        truth = truth + F.logsigmoid((2 * y - 1) * (2 + 3 * z))
        assert -scm.log_prob(values).mean() + truth.mean() < 0.05
        moved = scm.counterfactual(values, scm.causal_graph.encode_do({"z": 0.1}, 8000), seeded(0))
    was_one = y[:, 0] == 1
    expected = (torch.sigmoid(torch.tensor(2 - 3 * 0.8)) / torch.sigmoid(2 + 3 * z)).clamp(max=1)[was_one].mean()
    assert moved[was_one, 0].mean().item() == pytest.approx(expected.item(), abs=0.04)
    lower = z[:, 0] > -0.8
    assert (moved[~was_one & lower, 0] == 0).float().mean() > 0.995


# ---- storage and precision ----------------------------------------------------------------------------------------


def test_saved_model_is_the_same_model(scm, tmp_path):
    scm.save_pretrained(tmp_path)
    loaded = AttributeSCM.from_pretrained(tmp_path)
    assert loaded.causal_graph == scm.causal_graph
    values = factual(scm)
    assert torch.equal(loaded.log_prob(values), scm.log_prob(values))
    assert torch.equal(factual(loaded), values)
    # Half precision of a pipeline does not reach the mechanisms.
    half = AttributeSCM.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert torch.equal(half.log_prob(values), scm.log_prob(values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_are_computed_in_single_precision(scm, dtype):
    values = factual(scm).to(dtype)
    assert torch.equal(scm.log_prob(values), scm.log_prob(values.float()))
    noise = scm.abduct(values, seeded(0))
    assert torch.equal(noise, scm.abduct(values.float(), seeded(0)))
    null = scm.causal_graph.encode_do({}, len(values))
    assert torch.equal(scm.counterfactual(values, null), values.float())


# ---- errors -------------------------------------------------------------------------------------------------------


def test_autocast_does_not_round_the_mechanisms(scm):
    values = factual(scm)
    intervention = random_intervention(scm.causal_graph, len(values))
    exact = scm.counterfactual(values, intervention, seeded(3)), scm.log_prob(values)
    with torch.autocast("cpu", torch.bfloat16):
        cast = scm.counterfactual(values, intervention, seeded(3)), scm.log_prob(values)
    assert torch.equal(exact[0], cast[0])
    assert torch.equal(exact[1], cast[1])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("type", [1.0, 1.0, 0.0]),
        ("type", [0.0, 0.0, 0.0]),
        ("type", [0.5, 0.5, 0.0]),
        ("ill", [0.3]),
        ("dose", [1.2]),
    ],
)
def test_values_that_are_not_encoded_are_refused(scm, name, wrong):
    values = factual(scm, 4)
    values[2, scm.causal_graph.slices[name]] = torch.tensor(wrong)
    for method in (scm.log_prob, scm.abduct):
        with pytest.raises(ValueError, match=rf"values are not encoded for \['{name}'\]"):
            method(values)


# ---- missing values -----------------------------------------------------------------------------------------------


def missing(scm: AttributeSCM, values: Tensor, name: str, rows: slice) -> Tensor:
    values = values.clone()
    values[rows, scm.causal_graph.slices[name]] = math.nan
    return values


def test_terms_that_a_missing_value_enters_are_left_out(scm):
    values = factual(scm, 6)
    graph = scm.causal_graph
    for name in graph.names:
        log_prob = scm.log_prob(missing(scm, values, name, slice(2, 4)))
        changed = scm.log_prob(values) - log_prob
        assert torch.equal(changed[[0, 1, 4, 5]], torch.zeros(4))
        touched = [name, *(v.name for v in graph.variables if name in v.parents)]
        columns = scm._columns(values)
        terms = [scm._mechanism(n).log_prob(columns[n], scm._parents(n, columns)) for n in touched]
        torch.testing.assert_close(changed[2:4], torch.stack(terms).sum(dim=0)[2:4])


def test_an_image_of_which_nothing_is_known_teaches_nothing(scm):
    log_prob = scm.log_prob(torch.full_like(factual(scm, 3), math.nan))
    assert torch.equal(log_prob, torch.zeros(3))
    log_prob.sum().backward()
    assert all(p.grad is None or torch.equal(p.grad, torch.zeros_like(p)) for p in scm.parameters())
