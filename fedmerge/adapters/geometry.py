"""How fine-tunes of one base lie to each other, measured on one's own: what `fedmerge.geometry` offers.

- `compare`: lengths, cosines, influence, leader. `relative_lengths`, `relative_length`, `weight_norms`:
  by the weights moved.
- `sign_conflict`: where silos disagree about a sign, before and after a trim.
- `spectra`: effective rank, and the energy of the leading directions.
- `measure_line`, `barrier`: linear mode connectivity; `measure_plane`: the loss around three points. Both
  take `evaluate`, which scores an adapter; `blend` makes the points.
- `sentences`: from `Figures` to plain words.

Nothing here forms a LoRA product as a whole, and nothing trains.
"""

from __future__ import annotations

from fedmerge.adapters.angles import Geometry, compare
from fedmerge.adapters.blend import blend
from fedmerge.adapters.connectivity import Ends, Line, Point, barrier, measure_line, spread_points
from fedmerge.adapters.figures import Figures
from fedmerge.adapters.findings import sentences
from fedmerge.adapters.lengths import relative_length, relative_lengths, weight_norms
from fedmerge.adapters.plane import Plane, Triangle, measure_plane
from fedmerge.adapters.sign_conflict import Conflict, sign_conflict
from fedmerge.adapters.spectra import Spectrum, spectra

__all__ = [
    "Conflict",
    "Ends",
    "Figures",
    "Geometry",
    "Line",
    "Plane",
    "Point",
    "Spectrum",
    "Triangle",
    "barrier",
    "blend",
    "compare",
    "measure_line",
    "measure_plane",
    "relative_length",
    "relative_lengths",
    "sentences",
    "sign_conflict",
    "spectra",
    "spread_points",
    "weight_norms",
]
