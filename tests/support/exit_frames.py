"""Pictures for the head with several exits, sorted by which of its exits a policy lets answer."""

from __future__ import annotations

import numpy as np

from splitmesh.client.routing import PolicyInfo
from splitmesh.model.manifest import MANIFEST, UNUSUAL, Manifest, stage_name
from splitmesh.model.verify import run_all
from splitmesh.routing.scores import ease
from splitmesh.routing.unusual import Unusual
from splitmesh.runtime import open_session
from tests.support.exit_nets import NOISE, pictures_of, staged_classifier

STAGES = 2


class Frames:
    """Pictures that no exit has seen; ``of[k]``: the first exit that is sure of them is k, ``of[STAGES]``: none is."""

    def __init__(self, policy: PolicyInfo) -> None:
        self.pictures = pictures_of(400, noise=NOISE, seed=77)[0]
        artifacts = staged_classifier().artifacts()
        self.rows = run_all([open_session(artifacts[stage_name(k)]) for k in (1, 2)], {"x": self.pictures})
        exits = Manifest.from_json(artifacts[MANIFEST]).exits()
        self.exits = [self.rows[entry.output] for entry in exits]
        eases = [
            ease(policy.score, row, logits=self.rows[entry.logits or ""], parameters=policy.parameters)
            for row, entry in zip(self.exits, exits, strict=True)
        ]
        # Away from the threshold, so that a last bit does not decide.
        sure = np.stack(eases, axis=1) - policy.threshold
        clear = (np.abs(sure) > 0.01).all(axis=1)
        if UNUSUAL in artifacts:
            clear &= ~Unusual.from_bytes(artifacts[UNUSUAL]).strange(self.rows[exits[-1].features or ""])
        first = np.where((sure > 0).any(axis=1), (sure > 0).argmax(axis=1), STAGES)
        self.of = [np.flatnonzero(clear & (first == number))[:4] for number in range(STAGES + 1)]
        assert all(len(found) == 4 for found in self.of)
