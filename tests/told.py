"""What a launch shows, kept for a test to read."""

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

    def stage(self, name, *arguments):
        super().stage(name, *arguments)
        self.stages.append(name)

    def group(self, group):
        self.trained |= dict.fromkeys(group.runs, group.fraction)
