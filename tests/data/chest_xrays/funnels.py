"""What tests of the sources of chest X-rays ask a selection."""

from softcft.data.chest_xrays.common import Selection


def lost(selection: Selection) -> dict[str, int]:
    """How many images each step of the funnel left out, of those that did; these are the ones that are named."""
    lost = -selection.funnel["images"].diff().fillna(0).astype(int)
    steps = {step: number for step, number in zip(selection.funnel["step"], lost, strict=True) if number}
    assert selection.left_out["step"].value_counts().to_dict() == steps
    return steps


def split_of(selection: Selection) -> dict[str, str]:
    """The split of each subject, which has one."""
    assert (selection.rows.groupby("subject_id")["split"].nunique() == 1).all()
    return dict(zip(selection.rows["subject_id"], selection.rows["split"], strict=True))
