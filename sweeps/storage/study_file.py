"""The journal of an Optuna study: one line per change, each with a checksum of itself and of every line before it.

A journal that was cut, changed or exchanged loses the trials from the first bad line on; their records stay. Optuna's own journal has
no checksums, and locks what only one launch at a time writes to; it can read this one.
"""

import copy
import json
import math
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from sae_core.errors import reason_of
from sae_core.files import checksum_of, written_whole
from sweeps.storage.set_aside import make_room, set_aside

LEAST_L0 = 0.1
"""Taken for the L0 of an SAE without active latents."""


class StudyFile(BaseJournalBackend):
    """Journal of one study. Only one launch at a time may write, and must `mend` it first.

    Args:
        path: it need not exist yet.
        name: of the study; the journal of another study counts as damaged.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self._logs: list[dict[str, Any]] = []
        self._end = 0
        """Bytes of the lines that were read."""
        self._checksum = checksum_of(name.encode())
        self._damage: str | None = None

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The changes from a number on, up to the first that is not as it was written."""
        if self._damage is None:
            try:
                with self.path.open("rb") as file:
                    file.seek(self._end)
                    lines = file.read().split(b"\n")[:-1]  # every complete line ends in a newline
            except (FileNotFoundError, NotADirectoryError):
                lines = []
            except OSError as error:
                self._damage, lines = reason_of(error), []
            for line in lines:
                self._read(line)
        return self._logs[log_number_from:]

    def _read(self, line: bytes) -> None:
        body = line[:-_SEAL_BYTES]
        checksum = checksum_of(self._checksum.encode() + body)
        if self._damage is None and line == _sealed(body, checksum):
            self._logs.append(json.loads(line))
            self._end, self._checksum = self._end + len(line) + 1, checksum
        elif self._damage is None:
            self._damage = f"line {len(self._logs) + 1} is not as it was written"

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append changes, on disk when it returns."""
        self.read_logs(0)
        assert self._damage is None, f"{self._damage=}"
        checksum, lines = self._checksum, []
        for log in logs:
            body = json.dumps(log).encode()[:-1]
            checksum = checksum_of(checksum.encode() + body)
            lines.append(_sealed(body, checksum) + b"\n")
        with self.path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def damage(self) -> str | None:
        """What is wrong with the file; None where nothing is, or the last line was cut off, as a kill leaves it."""
        logs = self.read_logs(0)
        return "it holds no complete line" if not logs and self._damage is None and self.path.is_file() else self._damage

    def mend(self) -> bool:
        """Make the file ready to be appended to: keep what is damaged under another name, and go on from its good lines.

        Returns:
            Whether trials may be lost.
        """
        make_room(self.path.parent, directory=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if (damage := self.damage()) is not None:
            good = self.path.read_bytes()[: self._end] if self.path.is_file() else b""
            set_aside(self.path, f"{damage}; {len(self._logs)} changes of the study are kept")
            if good:
                with written_whole(self.path) as temporary:
                    temporary.write_bytes(good)
            self._damage = None
            return True
        cut_off = self.path.is_file() and self.path.stat().st_size > self._end
        if cut_off:
            os.truncate(self.path, self._end)
        return cut_off


class InOctaves(JournalStorage):
    """A study as a sampler should see it: L0 as log2 L0, as in our hypervolumes. On L0 itself it cares for the dense end of a front only.

    Args:
        objectives: names of the values of a trial.
    """

    def __init__(self, backend: BaseJournalBackend, objectives: Sequence[str]) -> None:
        self._objectives = tuple(objectives)
        self._seen: dict[int, FrozenTrial] = {}
        """Finished trials, which do not change any more, by their number."""
        super().__init__(backend)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A trial."""
        return self._in_octaves(super().get_trial(trial_id))

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials of a study, in order."""
        trials = [self._in_octaves(trial) for trial in super().get_all_trials(study_id, deepcopy=False, states=states)]
        return copy.deepcopy(trials) if deepcopy else trials

    def _in_octaves(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.values is None:
            return trial
        if trial.number not in self._seen:
            seen = copy.copy(trial)
            seen.values = [
                math.log2(max(value, LEAST_L0)) if name == "l0" else value
                for name, value in zip(self._objectives, trial.values, strict=True)
            ]
            self._seen[trial.number] = seen
        return self._seen[trial.number]


def _sealed(body: bytes, checksum: str) -> bytes:
    """A line; `body` is its JSON without the last bracket."""
    return body + b', "checksum": "' + checksum.encode() + b'"}'


_SEAL_BYTES = len(_sealed(b"", "0" * 32))
