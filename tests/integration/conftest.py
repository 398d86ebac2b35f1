"""What a launch shows."""

import pytest

from sweeps.execution.progress import SweepProgress


class Told(SweepProgress):
    """Progress that keeps what it is told: notes, stages, and how far each run that was trained is."""

    def __init__(self):
        super().__init__()
        self.notes = []
        self.stages = []
        self.trained = {}

    def note(self, text):
        self.notes.append(text)

    def stage(self, name, total, unit):
        super().stage(name, total, unit)
        self.stages.append(name)

    def runs(self, fractions):
        self.trained |= fractions


@pytest.fixture
def progress():
    return Told()
