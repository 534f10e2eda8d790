import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

from tests.hub.loopback import WRITER, LoopbackHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """The client of this process and of those it starts talks to a server of this test, and keeps its files here."""
    server = LoopbackHub()
    home, real_home = tmp_path / "home", constants.HF_HOME
    for name, value in vars(constants).items():
        if isinstance(value, str) and value.startswith(real_home):
            monkeypatch.setattr(constants, name, value.replace(real_home, str(home), 1))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", server.address)
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield server
    server.close()
