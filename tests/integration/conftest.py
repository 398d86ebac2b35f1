"""What a launch shows."""

import pytest
from told import Told


@pytest.fixture
def progress():
    return Told()
