import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value

from softcft.data.keys import group_doubts, is_key, lacks_group, shared_names

N = 60


def ages(i: int) -> int:
    return 20 + 7 * i % 61


def table(parts: int = 1, **columns) -> DatasetDict:
    rows = Dataset.from_dict({name: [column(i) for i in range(N)] for name, column in columns.items()})
    size = N // parts
    return DatasetDict({f"part{i}": rows.select(range(i * size, (i + 1) * size)) for i in range(parts)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RID", lambda i: 4000 + i // 3 * 7),
        ("eid", lambda i: 1000015 + i // 2 * 331),
        ("patientid", lambda i: i // 3),
        ("Patient ID", lambda i: i // 3),
        ("json.SubjectID", lambda i: i // 3),
        ("subject", lambda i: 100 + i // 2),
        ("patient", lambda i: 1 + i // 2),
        ("participant_number", lambda i: 5 + i % 20),
        ("PatNr", lambda i: i % 20),
        ("paciente", lambda i: i % 20),
        ("study_uid", lambda i: i),
        ("Image Index", lambda i: f"{i}.png"),
        ("Unnamed: 29", lambda i: i),
        ("number", lambda i: i // 2),  # by its values: 0, 0, 1, 1 and so on
        ("code", lambda i: 839860488694292331637988235681460987 + i // 2),
        ("who", lambda i: 301234 + i // 3 * 17),
        ("case", lambda i: i % 9),
        ("who", lambda i: f"RAD-{i // 3:04d}"),
        ("who", lambda i: f"BRCA1-{i // 3:04d}"),
        ("who", lambda i: f"P{100 + i // 3}"),
    ],
)
def test_keys_are_no_quantities(name, value) -> None:
    assert is_key(name, [str(value(i)) for i in range(N)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("age", ages),
        ("Follow-up #", lambda i: i % 3),
        ("body_mass_index", ages),
        ("case", lambda i: i % 2),
        ("subject", lambda i: i % 2),
        ("paid", lambda i: i % 2),
        ("weight_g", lambda i: 100_000 + 1000 * (i % 30)),
        ("volume", lambda i: 1_345_671 + 1003 * i),
        ("date", lambda i: 20140101 + i % 28),
        ("model_name", lambda i: "AB"[i % 2]),
        ("sorted", lambda i: 18 + i // 2),
        ("Modality", lambda i: "X"),
    ],
)
def test_quantities_and_categories_are_no_keys(name, value) -> None:
    assert not is_key(name, [str(value(i)) for i in range(N)])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("patient", lambda i: i % 20),
        ("patient", lambda i: f"P{i % 20:03d}"),
        ("RID", lambda i: 4000 + i % 20 * 7),
        ("code", lambda i: f"A-{i % 25:04d}"),
        ("subject", lambda i: i % 5),
        ("mrn", lambda i: None if i == 3 else i % 20),
    ],
)
def test_keys_that_repeat_ask_for_a_group_column(parts, column, value) -> None:
    splits = table(parts, age=ages, study_id=lambda i: i // 2 + 40, **{column: value})
    told = lacks_group(splits)
    assert told is not None
    assert ("several splits" in told) == (parts > 1)
    if column != "code":  # a patient's column comes before one of studies
        assert f"--group_column {column!r}" in told


@pytest.mark.parametrize(
    "columns",
    [
        {"age": ages},
        {"image_id": lambda i: i},
        {"reader_id": lambda i: i % 3},
        {"site": lambda i: f"S{i % 3:02d}"},
        {"sex": lambda i: "FM"[i % 2], "volume": lambda i: 1_345_671 + 1003 * i},
    ],
)
def test_nothing_is_asked_where_nothing_repeats(columns) -> None:
    assert lacks_group(table(**columns)) is None


@pytest.mark.parametrize(
    ("parts", "patient", "named"),
    [
        (2, lambda i: f"P{i % 30}", "'P0'"),  # in both splits
        (1, lambda i: [f"{i // 2:03d}", str(i // 2)][i % 2], "'000', '0'"),
        (1, lambda i: [f"P{i // 2:02d}", f"p{i // 2:02d} "][i % 2], "'P00', 'p00 '"),
        (1, lambda i: [f"A-{i // 2}", f"A_{i // 2}"][i % 2], "'A-0', 'A_0'"),
        (1, lambda i: [str(i // 2), f"{i // 2}.0"][i % 2], "'0', '0.0'"),
        (1, lambda i: "unknown" if i % 3 == 0 else f"P{i // 2}", "'unknown'"),
        (1, lambda i: -1 if i % 3 == 0 else i // 2, "'-1'"),
        (1, lambda i: 8.39860488694292e35 + i // 2 * 1e21, "e+35"),
    ],
)
def test_patients_who_are_not_told_apart_as_they_should_be(parts, patient, named) -> None:
    (doubt,) = group_doubts(table(parts, patient=patient), "patient")
    assert "'patient'" in doubt
    assert named in doubt


@pytest.mark.parametrize(
    ("parts", "patient"),
    [
        (1, lambda i: i // 3),
        (2, lambda i: f"P{i // 3:03d}"),
        (1, lambda i: None if i % 2 else f"P{i}"),
        (1, lambda i: f"{i // 30}-{i // 3:02d}"),
        (1, lambda i: f"{i * 7919 % 997:x}"),
        (1, lambda i: i // 20),
        (1, lambda i: i if i < 30 else 1000 + i // 25),  # some have many images, most have one
    ],
)
def test_patients_who_are_told_apart(parts, patient) -> None:
    assert group_doubts(table(parts, patient=patient), "patient") == []


@pytest.mark.parametrize(
    "name",
    [
        lambda i: f"images_001/images/{i // 3:08d}_{i % 3:03d}.png",
        lambda i: f"train/patient{i // 3:05d}/study1/view{i % 3}_frontal.jpg",
        lambda i: f"{'ab'[i % 2]}/person{i // 3}_{i}.jpeg",
        lambda i: f"files/p1{i // 30}/p1{i // 3:07d}/s5{i:07d}/{i}.jpg",
        lambda i: f"sub-{i // 3:02d}/anat/T1w-{i % 3}.png",
        lambda i: f"sub-{i // 3:02d}_run-{i % 3}.png",
        lambda i: f"{1000 + i // 2}_{['left', 'right'][i % 2]}.jpeg",
        lambda i: f"Case {i // 3} - {i % 3}.png",
        lambda i: rf"img\{i // 3:05d}\{i % 3}.png",
    ],
)
def test_names_of_one_patients_pictures_are_seen(name) -> None:
    found = shared_names([name(i) for i in range(N)])
    assert found is not None
    assert found[1] == (N // 2 if "left" in name(0) else N // 3)


@pytest.mark.parametrize(
    "name",
    [
        lambda i: f"{i:03d}.png",
        lambda i: f"train/{i:06d}.jpg",
        lambda i: f"ISIC_{i:07d}.jpg",
        lambda i: f"UTKFace/{20 + i % 30}_{i % 2}_{i % 5}_20170116{i:09d}.jpg",
        lambda i: f"{'ab'[i % 2]}_{i}.png",
        lambda i: f"2014/{i}.png",
        lambda i: f"{2000 + i // 4}_{i:03d}.png",
        lambda i: f"{20140101 + i // 4}_{i}.png",
        lambda i: f"{i // 30}/{i}.png",
        lambda i: f"{216840111366964012373310883942 + i}_00-093-{i:03d}.png",
        lambda i: f"pictures-123456/{i:05d}_x.png",
    ],
)
def test_other_names_are_left_alone(name) -> None:
    assert shared_names([name(i) for i in range(N)]) is None


def test_pictures_names_ask_for_a_group_column() -> None:
    paths = [f"/data/0000{1000 + i // 2}_{i % 2}.png" for i in range(N)]
    rows = Dataset.from_dict(
        {"image": [{"bytes": None, "path": path} for path in paths], "age": list(map(ages, range(N)))},
        features=Features({"image": Image(), "age": Value("int64")}),
    )
    assert "--group_column" in (lacks_group({"train": rows}) or "")
