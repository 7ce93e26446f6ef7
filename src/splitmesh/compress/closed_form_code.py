"""A closed-form code fitted to a cut: streams the head's features through ``closed_form.py`` and ``reaction.py``.

Knows a head, a tail and samples; nothing of versions. The features are computed anew for each pass (four of them):
those of all samples do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from splitmesh.compress import reaction
from splitmesh.compress.closed_form import (
    SUBSPACE,
    ZERO_POINT,
    Basis,
    Layout,
    Moments,
    choose_basis,
    choose_scale,
    fit_decoder,
)
from splitmesh.compress.closed_form_graph import decoder_model, encoder_model
from splitmesh.compress.work import BATCH, Context, Rows
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

FIT_SAMPLES = 2048
"""At most so many are looked at: further ones change nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Coder:
    """Encoder and decoder of a bottleneck, however they were found."""

    encoder: ModelProto
    decoder: ModelProto
    scale: float
    """Of the code's rounding: real = (q - zero_point) * scale."""
    zero_point: int
    channels: int


class Features:
    """What a head gives at one tensor, for the fit samples, as often as it is read."""

    def __init__(self, head: bytes, tensor: str, context: Context, rows: Rows) -> None:
        self._session = open_session(head, threads=context.threads)
        self._tensor = tensor
        self._samples = context.samples
        self._rows = rows

    def __iter__(self) -> Iterator[Array]:
        for feed in self._samples.feeds(self._rows):
            yield self._session.run(feed)[self._tensor]

    def some(self, count: int) -> Sequence[Array]:
        """Single samples, spread over all."""
        rows = self._rows[np.linspace(0, len(self._rows) - 1, min(count, len(self._rows))).astype(np.int64)]
        given = [self._session.run(feed)[self._tensor] for feed in self._samples.feeds(rows)]
        return [array[row : row + 1] for array in given for row in range(len(array)) if np.isfinite(array[row]).all()]

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()


@dataclass(frozen=True, slots=True, eq=False)
class ClosedForm:
    """A basis with its rounding; the decoder is fitted for the rates that are wanted."""

    basis: Basis
    scale: float
    features: Features

    def coder(self, channels: int, steps: tuple[int, ...]) -> Coder:
        """With the first channels, the decoder fitted for these steps."""
        basis = self.basis.first(min(channels, self.basis.channels))
        decoder = fit_decoder(basis, self.scale, self.features, steps)
        return Coder(encoder_model(basis), decoder_model(basis, decoder), self.scale, ZERO_POINT, basis.channels)

    def close(self) -> None:
        """Give the memory back."""
        self.features.close()


def fit_closed_form(
    head: bytes,
    tail: bytes,
    tensor: str,
    layout: Layout,
    context: Context,
    *,
    channels: int,
    tail_macs: int | None,
    class_output: str,
) -> ClosedForm:
    """The code of at most ``channels`` channels of what the head gives and the tail takes.

    ``tail_macs``: of the tail for one sample, which say how often it is run to see what its answers react to; None: not
    at all, plain principal components. MeshError CALIBRATION_INSUFFICIENT when the features never vary.
    """
    features = Features(head, tensor, context, context.samples.fit[:FIT_SAMPLES])
    moments = Moments(layout)
    for batch in features:
        moments.add(batch)
    principal = moments.principal(max(SUBSPACE, channels))
    reacted = None
    if tail_macs is not None:
        fixed = context.samples.calibration.fixed_batch
        with closing(open_session(tail, threads=context.threads)) as session:
            reacted = reaction.measure_reaction(
                principal,
                features.some(reaction.SAMPLES),
                session,
                tensor,
                class_output=class_output,
                runs=reaction.runs_for(tail_macs),
                batch=fixed or 2 * BATCH,
                seed=context.samples.seed,
            )
    basis = choose_basis(principal, reacted, channels)
    return ClosedForm(basis, choose_scale(basis, features), features)
