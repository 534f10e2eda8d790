import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A property's first example pays for torch's warm-up, so time per example says nothing about the code.
settings.register_profile("softcft", deadline=None)
settings.load_profile("softcft")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
