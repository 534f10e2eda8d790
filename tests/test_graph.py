import itertools
import json
import math
import random

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from softcft.graph import CausalGraph, Variable

AGE = {"name": "age", "kind": "continuous", "low": 20, "high": 90, "unit": "years"}
SEX = {"name": "sex", "kind": "binary", "categories": ["male", "female"]}
RACE = {"name": "race", "kind": "categorical", "categories": ["Asian", "Black", "White"]}
ILL = {"name": "ill", "kind": "binary", "categories": ["no", "yes"], "parents": ["age", "stage"]}
STAGE = {"name": "stage", "kind": "categorical", "categories": ["0", "1", "2"], "parents": ["age"]}


@pytest.fixture
def graph() -> CausalGraph:
    return CausalGraph([ILL, RACE, AGE, SEX, STAGE])  # not in causal order


@st.composite
def graphs(draw: st.DrawFn) -> CausalGraph:
    """Any graph of up to six variables, listed in any order."""
    variables = []
    for i in range(draw(st.integers(1, 6))):
        fields = {"name": f"v{i}", "kind": draw(st.sampled_from(["binary", "categorical", "continuous"]))}
        if fields["kind"] == "continuous":
            fields["low"] = draw(st.floats(-1000, 1000))
            fields["high"] = fields["low"] + draw(st.floats(1e-2, 1000))
        else:
            size = 2 if fields["kind"] == "binary" else draw(st.integers(2, 5))
            fields["categories"] = [f"c{j}" for j in range(size)]
        fields["parents"] = [f"v{j}" for j in range(i) if draw(st.booleans())]
        variables.append(Variable(**fields))
    return CausalGraph(draw(st.permutations(variables)))


def natural(graph: CausalGraph, size: int, seed: int) -> dict[str, list]:
    """Random values of all variables."""
    rng = random.Random(seed)
    return {
        v.name: [
            rng.uniform(v.low, v.high) if v.kind == "continuous" else rng.choice(v.categories) for _ in range(size)
        ]
        for v in graph.variables
    }


# ---- variables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({**AGE, "name": ""}, "name, got ''"),
        ({**AGE, "name": 3}, "name, got 3"),
        ({**AGE, "name": "image"}, "'image'"),
        ({**AGE, "parents": "sex"}, "'age': parents .*'sex'"),
        ({**AGE, "parents": None}, "'age': parents .*None"),
        ({**AGE, "parents": ["sex", "sex"]}, "'age': parents"),
        ({**SEX, "categories": 3}, "'sex': categories .*3"),
        ({**SEX, "categories": {"male": 0, "female": 1}}, "'sex': categories"),
        ({**SEX, "categories": "mf"}, "'sex': categories .*'mf'"),
        ({**RACE, "categories": [1, "1"]}, "'race': categories"),
        ({**AGE, "kind": "ordinal"}, "'age': .*kind 'ordinal'"),
        ({**AGE, "categories": ["a", "b"]}, "'age' .*categories"),
        ({**AGE, "low": None}, "'age' .*low=None"),
        ({**AGE, "high": math.inf}, "'age' .*high=inf"),
        ({**AGE, "high": math.nan}, "'age' .*high=nan"),
        ({**AGE, "low": "0"}, "'age' .*low='0', high=90; give both as numbers"),
        ({**AGE, "low": False}, "'age' .*low=False"),
        ({**AGE, "high": 20}, "'age': low .*high=20"),
        ({**SEX, "low": "0"}, "'sex' .*low='0'"),
        ({**RACE, "high": 2}, "'race' .*high"),
        ({**SEX, "log": True}, "'sex' .*log"),
        ({**AGE, "log": 1}, "'age': log .*1"),
        ({**AGE, "log": True, "low": 0}, "'age': log .*low=0"),
        ({**SEX, "categories": ["a", "b", "c"]}, "'sex' .*two categories"),
        ({"name": "sex", "kind": "binary"}, "'sex' .*two categories"),
        ({**RACE, "categories": ["a"]}, "'race' .*two categories"),
    ],
)
def test_invalid_variable_is_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        Variable(**fields)


@pytest.mark.parametrize(
    ("fields", "values", "encoded"),
    [
        (AGE, 20, [[-1]]),
        (AGE, [55, 90.0], [[0], [1]]),
        (AGE, np.array([20, 55]), [[-1], [0]]),
        (AGE, np.float32(55), [[0]]),
        (AGE, torch.tensor([90.0, 20.0]), [[1], [-1]]),
        (AGE, torch.tensor(55), [[0]]),
        (AGE, [np.float32(55), np.int64(90), torch.tensor(20)], [[0], [1], [-1]]),
        (SEX, "female", [[1]]),
        (SEX, ("male", "female"), [[0], [1]]),
        (SEX, np.array(["female", "male"]), [[1], [0]]),
        (RACE, ["White", "Asian"], [[0, 0, 1], [1, 0, 0]]),
        (STAGE, [2, "0"], [[0, 0, 1], [1, 0, 0]]),
        (STAGE, torch.tensor([1]), [[0, 1, 0]]),
        (STAGE, [np.int64(1)], [[0, 1, 0]]),
        ({**STAGE, "categories": [0, 1, 2]}, [2, "0"], [[0, 0, 1], [1, 0, 0]]),
    ],
)
def test_natural_values_of_every_form_are_encoded(fields, values, encoded):
    actual = Variable(**fields).encode(values)
    assert actual.dtype == torch.float32
    assert actual.tolist() == encoded


@pytest.mark.parametrize(
    ("fields", "value", "message"),
    [
        (AGE, "old", "'age' must be a number years, got 'old'"),
        (AGE, None, "'age' must be a number years, got None"),
        (AGE, True, "'age' must be a number years, got True"),
        (AGE, [30, 90.5], r"'age' must lie in \[20, 90\] years, got 90.5"),
        (AGE, math.nan, r"'age' must lie in \[20, 90\] years, got nan"),
        ({**AGE, "unit": ""}, 19, r"'age' must lie in \[20, 90\], got 19"),
        (SEX, "other", r"'sex' has no category 'other'; use one of \['male', 'female'\]"),
        (SEX, 1, "'sex' has no category '1'"),
        (SEX, True, "'sex' has no category True"),
        (STAGE, 1.0, "'stage' has no category 1.0"),
        (RACE, ["White", None], "'race' has no category None"),
    ],
)
def test_invalid_value_is_refused(fields, value, message):
    with pytest.raises(ValueError, match=message):
        Variable(**fields).encode(value)


def test_a_logarithmic_variable_is_halved_by_the_geometric_mean():
    volume = Variable(name="volume", kind="continuous", low=10, high=1000, log=True)
    values = [10, 100, 1000, 20]
    encoded = volume.encode(values)
    torch.testing.assert_close(encoded[:3, 0], torch.tensor([-1.0, 0.0, 1.0]))
    assert volume.decode(encoded) == pytest.approx(values, rel=1e-6)
    assert CausalGraph(CausalGraph([volume]).to_list())["volume"] == volume


@st.composite
def ranges(draw):
    """A continuous variable of any range, narrow or wide, near to 0 or far from it."""
    log = draw(st.booleans())
    low = 10 ** draw(st.floats(-30, 30)) if log else draw(st.sampled_from([0.0, -1.0, 1900.0, 1e-6, -273.15, 1e6]))
    high = low * 10 ** draw(st.floats(0.001, 6)) if log else low + 10 ** draw(st.floats(-3, 30))
    return Variable(name="x", kind="continuous", low=low, high=high, log=log)


def held(variable, value):
    """How many digits after the point float32 tells apart at a value of the variable, see Variable.encode."""
    # The last bit below 1 is 2**-24 of the half range; two numbers less than that apart may be encoded to the same.
    ends = (math.log(variable.low), math.log(variable.high)) if variable.log else (variable.low, variable.high)
    step = 2.0**-25 * (ends[1] - ends[0]) * (value if variable.log else 1)
    return math.ceil(-math.log10(step * 1.01)) - 1


@settings(max_examples=500, deadline=None)
@given(ranges(), st.floats(0, 1), st.integers(0, 30))
def test_what_float32_tells_apart_comes_back(variable, share, fewer):
    if variable.log:
        value = variable.low * (variable.high / variable.low) ** share
    else:
        value = variable.low + share * (variable.high - variable.low)
    # Far from 0 a narrow range has more places in float32 than the numbers themselves, which are doubles.
    digits = min(held(variable, value), 14 - math.floor(math.log10(max(abs(variable.low), abs(variable.high)))))
    value = round(value, digits - fewer)
    if variable.low <= value <= variable.high:
        assert variable.decode(variable.encode(value)) == [value]


@settings(max_examples=500, deadline=None)
@given(ranges(), st.floats(-1, 1, width=32))
def test_what_was_decoded_encodes_to_the_same(variable, encoded):
    (value,) = variable.decode(torch.tensor([[encoded]]))
    assert variable.low <= value <= variable.high
    doubles = 2 * math.ulp(max(abs(variable.low), abs(variable.high))) / (variable.high - variable.low)
    assert variable.encode(value).item() == pytest.approx(encoded, abs=2.0**-24 + 2 * doubles, rel=0)


def test_what_a_network_predicts_outside_of_the_range_is_decoded_as_it_is():
    age = Variable(**AGE)
    assert age.decode(torch.tensor([[1.2], [-1.2]])) == pytest.approx([97, 13])
    assert math.isnan(age.decode(torch.tensor([[math.nan]]))[0])
    dose = Variable(name="dose", kind="continuous", low=1, high=100, log=True)
    assert dose.decode(torch.tensor([[2.0], [-2], [1000]])) == pytest.approx([1000, 0.1, math.inf])
    assert math.isnan(dose.decode(torch.tensor([[math.nan]]))[0])


def test_rounding_at_the_ends_of_the_range_is_forgiven():
    age = Variable(**AGE)
    assert age.encode([90.0001, 19.9999]).tolist() == [[1], [-1]]


def test_decoding_takes_the_most_probable_category():
    assert Variable(**RACE).decode(torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])) == ["Black", "Asian"]
    assert Variable(**SEX).decode(torch.tensor([[0.4], [0.6]])) == ["male", "female"]


# ---- graphs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ([], "at least one variable"),
        ([AGE, SEX, AGE], r"\['age'\]"),
        ([ILL, AGE], "'ill' .*'stage'"),
        ([{**AGE, "parents": ["age"]}], "cycle: age -> age"),
        ([{**AGE, "parents": ["ill"]}, STAGE, ILL], "cycle: .* -> "),
        ([{**AGE, 1: 2, "colour": "red"}], r"'age' .*\[1, 'colour'\]"),
        ([{"kind": "binary"}], "name and a kind"),
        ([{"name": "age"}], "name and a kind"),
        ({"age": AGE}, "must be a list"),
        (None, "must be a list"),
        ([AGE, "sex"], "'sex'"),
        ([None], "None"),
    ],
)
def test_invalid_graph_is_refused(variables, named):
    with pytest.raises(ValueError, match=named):
        CausalGraph(variables)


def test_cycle_in_the_message_is_a_cycle_of_the_graph():
    fields = {"kind": "binary", "categories": ["0", "1"]}
    parents = {"a": ["c"], "b": ["a"], "c": ["b"], "d": ["a"]}
    with pytest.raises(ValueError, match="cycle") as error:
        CausalGraph([{**fields, "name": name, "parents": parents[name]} for name in parents])
    cycle = str(error.value).removesuffix(".").split(": ")[1].split(" -> ")
    assert cycle[0] == cycle[-1]
    assert all(cause in parents[effect] for cause, effect in itertools.pairwise(cycle))


def test_columns_follow_the_given_order(graph):
    assert graph.names == ("ill", "race", "age", "sex", "stage")
    assert graph.slices == {
        "ill": slice(0, 1), "race": slice(1, 4), "age": slice(4, 5), "sex": slice(5, 6), "stage": slice(6, 9),
    }  # fmt: skip
    assert graph.width == 9
    assert len(graph) == 5
    assert graph["race"] == Variable(**RACE)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_plain_data_gives_the_same_graph_back(graph):
    plain = graph.to_list()
    for travelled in (plain, json.loads(json.dumps(plain)), yaml.safe_load(yaml.safe_dump(plain))):
        again = CausalGraph(travelled)
        assert again == graph
        assert hash(again) == hash(graph)
        assert again.to_list() == plain


def test_plain_data_leaves_defaults_out_and_keeps_zero(graph):
    assert graph.to_list()[3] == SEX
    dose = {"name": "dose", "kind": "continuous", "low": 0, "high": 1}
    assert CausalGraph([dose]).to_list() == [dose]


def test_graphs_of_other_variables_differ(graph):
    assert graph != CausalGraph([ILL, RACE, AGE, SEX, {**STAGE, "parents": []}])
    assert graph != CausalGraph([AGE, ILL, RACE, SEX, STAGE])  # the columns differ
    assert graph != graph.to_list()


# ---- structure ----------------------------------------------------------------------------------------------------


def reachable(graph: CausalGraph, names: set[str]) -> set[str]:
    """The names and all that descends from them, by following edges until nothing is new."""
    while True:
        found = names | {v.name for v in graph.variables if names & set(v.parents)}
        if found == names:
            return names
        names = found


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_causes_come_before_effects(graph):
    assert sorted(graph.causal_order) == sorted(graph.names)
    for variable in graph.variables:
        for parent in variable.parents:
            assert graph.causal_order.index(parent) < graph.causal_order.index(variable.name)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_affected_variables_are_those_that_edges_reach(graph):
    rows = [list(row) for row in itertools.product([False, True], repeat=len(graph))]
    affected = graph.affected(torch.tensor(rows))
    assert affected.dtype == torch.bool
    for row, actual in zip(rows, affected.tolist(), strict=True):
        names = {name for name, given_ in zip(graph.names, row, strict=True) if given_}
        expected = reachable(graph, names)
        assert {name for name, moved in zip(graph.names, actual, strict=True) if moved} == expected
        assert graph.affected_by(names) == expected
    for name in graph.names:
        assert graph.descendants(name) == reachable(graph, {name}) - {name}
        assert graph.affected_by(name) == reachable(graph, {name})


def test_the_blanket_is_causes_effects_and_their_other_causes() -> None:
    graph = CausalGraph([AGE, SEX, STAGE, ILL, {**SEX, "name": "sign", "parents": ["ill", "sex"]}])
    assert graph.blanket("age") == {"stage", "ill"}
    assert graph.blanket("sex") == {"sign", "ill"}
    assert graph.blanket("ill") == {"age", "stage", "sign", "sex"}
    assert graph.blanket("sign") == {"ill", "sex"}
    assert CausalGraph([AGE, SEX]).blanket("age") == set()


@pytest.mark.parametrize("fields", [SEX, RACE, STAGE])
def test_a_category_has_a_number_and_probabilities(fields):
    variable = Variable(**fields)
    count = len(variable.categories)
    labels = variable.encode(variable.categories)
    assert variable.category_index(labels).tolist() == list(range(count))
    assert torch.equal(variable.category_probabilities(labels), torch.eye(count))
    assert variable.category_index(labels[None]).shape == (1, count)  # any number of dimensions before the columns


@pytest.mark.parametrize("fields", [SEX, RACE, STAGE])
def test_another_category_is_so_many_steps_further(fields):
    variable = Variable(**fields)
    labels = variable.encode(variable.categories)
    for steps in range(1, len(variable.categories)):
        others = variable.other_category(labels, steps)
        assert others.dtype == labels.dtype
        assert variable.decode(others) == [*variable.categories[steps:], *variable.categories[:steps]]
    each = torch.tensor([1, *[0] * (len(labels) - 1)])
    assert variable.decode(variable.other_category(labels, each)) == [variable.categories[1], *variable.categories[1:]]


def test_a_continuous_variable_counts_as_one_category():
    values = torch.tensor([[-0.5], [0.7]])
    assert Variable(**AGE).category_index(values).tolist() == [0, 0]
    assert Variable(**AGE).category_probabilities(values).tolist() == [[1.0], [1.0]]


def test_values_are_read_in_words(graph):
    age, dose = graph["age"], Variable(name="dose", kind="continuous", low=0, high=1e4)
    assert age.in_words(44.60972) == "44.6 years"
    assert age.in_words(44.60972, digits=4, with_unit=False) == "44.61"
    assert [dose.in_words(value) for value in (1230.0, 63.21, 0.12345, 0)] == ["1230", "63.2", "0.123", "0"]
    assert graph["race"].in_words("Black") == "Black"
    assert (age.values_in_words(), graph["ill"].values_in_words()) == ("20 to 90 years", "no, yes")
    assert graph.in_words({"stage": "1", "age": 63, "sex": None}) == "age 63 years, sex ?, stage 1"


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_expand_repeats_each_entry_over_its_columns(graph):
    entries = torch.rand(3, len(graph))
    columns = graph.expand(entries)
    assert columns.shape == (3, graph.width)
    for i, name in enumerate(graph.names):
        own = columns[:, graph.slices[name]]
        assert torch.equal(own, entries[:, [i]].expand_as(own))
    assert graph.expand(entries > 0.5).dtype == torch.bool


# ---- values -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(1, 4), st.integers(0, 10**6))
def test_decoding_inverts_encoding(graph, size, seed):
    values = natural(graph, size, seed)
    encoded = graph.encode(values)
    assert encoded.shape == (size, graph.width)
    assert encoded.abs().max() <= 1
    decoded = graph.decode(encoded)
    for variable in graph.variables:
        if variable.kind == "continuous":
            tolerance = 1e-6 * (variable.high - variable.low)
            assert decoded[variable.name] == pytest.approx(values[variable.name], abs=tolerance, rel=0)
        else:
            assert decoded[variable.name] == values[variable.name]
    # What was decoded encodes to the same tensor, ends of ranges included.
    torch.testing.assert_close(graph.encode(decoded), encoded, atol=2.0**-24, rtol=0)


def test_scalars_are_repeated_over_the_batch(graph):
    values = {"age": [30, 60], "sex": "male", "race": "Black", "ill": ["no", "yes"], "stage": 1}
    encoded = graph.encode(values)
    assert encoded.shape == (2, 9)
    assert torch.equal(encoded[:, 1:4], torch.tensor([[0.0, 1, 0], [0, 1, 0]]))
    one = {**values, "age": 30, "ill": "no"}
    assert torch.equal(graph.encode(one, batch_size=3), graph.encode(one).expand(3, -1))


def test_invalid_batches_of_values_are_refused(graph):
    values = {"age": [30, 60], "sex": "male", "race": "Black", "ill": ["no", "yes"], "stage": 1}
    for wrong, batch_size, named in (
        ({"sex": "male", "ill": "no", "stage": 1}, None, r"\['race', 'age'\]"),
        ({**values, "age": [30, 60, 70]}, None, "'ill' has 2 values for a batch of 3"),
        (values, 5, "'age' has 2 values for a batch of 5"),
        (values, 1, "'age' has 2 values for a batch of 1"),
    ):
        with pytest.raises(ValueError, match=named):
            graph.encode(wrong, batch_size=batch_size)
    for encode in (lambda change: graph.encode(values | change, 2), lambda change: graph.encode_do(change, 2)):
        for change, named in (
            ({"weight": 70}, "'weight'"),
            ({"age": [30, 40, 50]}, "'age' has 3 values for a batch of 2"),
            ({"age": []}, "'age' has 0 values"),
            ({"race": []}, "'race' has 0 values"),
            ({"age": 120}, "'age' .*120"),
        ):
            with pytest.raises(ValueError, match=named):
                encode(change)
    for not_a_dict in ([values], "age"):
        with pytest.raises(ValueError, match="dict"):
            graph.encode_do(not_a_dict, 2)
    for ask in (graph.descendants, graph.affected_by, graph.blanket, graph.__getitem__):
        with pytest.raises(ValueError, match="'weight'"):
            ask("weight")


def test_do_encodes_scalars_and_lists_and_marks_what_is_done(graph):
    values, mask = graph.encode_do({"age": [20, 55, 90], "race": "White"}, batch_size=3)
    assert mask.tolist() == [[False, True, True, False, False]] * 3
    assert torch.equal(values[:, graph.slices["age"]], torch.tensor([[-1.0], [0], [1]]))
    assert torch.equal(values[:, graph.slices["race"]], torch.tensor([[0.0, 0, 1]] * 3))
    null = graph.encode_do({}, batch_size=2)
    assert null.values.shape == (2, 9)
    assert not null.mask.any()


@pytest.mark.parametrize("shape", [(2, 8), (9,), (1, 2, 9)])
def test_decoding_another_shape_is_refused(graph, shape):
    with pytest.raises(ValueError, match=r"encoded must have the shape \(B, K\) with K = 9, got \("):
        graph.decode(torch.zeros(shape))
