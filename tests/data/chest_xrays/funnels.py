"""What tests of the sources of chest X-rays ask a selection."""

from softcft.data.chest_xrays.common import Selection


def lost(selection: Selection) -> dict[str, int]:
    """How many images each step of the funnel left out, without the steps that left out none."""
    lost = -selection.funnel["images"].diff().fillna(0).astype(int)
    return {step: number for step, number in zip(selection.funnel["step"], lost, strict=True) if number}


def split_of(selection: Selection) -> dict[str, str]:
    """The split of each subject, which has one."""
    assert (selection.rows.groupby("subject_id")["split"].nunique() == 1).all()
    return dict(zip(selection.rows["subject_id"], selection.rows["split"], strict=True))
