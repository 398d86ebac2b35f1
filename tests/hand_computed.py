"""One batch and one set of weights, small enough for arithmetic by hand; the unit tests of the architectures share them.

x - b_dec = [[3, 3], [-1, 0]], so (x - b_dec) @ W_enc = [[3, 3, 6], [-1, 0, -1]], and with b_enc the pre-activations are
[[3, 2, 6], [-1, -1, -1]]. Decoder rows have norms 1, 2 and 5, so the scores (pre-activation times norm) are [[3, 4, 30], [-1, -2, -5]].
"""

from typing import Any

import torch

X = torch.tensor([[4.0, 3.0], [0.0, 0.0]])
SHARED: dict[str, list[Any]] = {
    "W_enc": [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]],
    "W_dec": [[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]],
    "b_dec": [1.0, 0.0],
}
WEIGHTS: dict[str, list[Any]] = SHARED | {"b_enc": [0.0, -1.0, 0.0]}
