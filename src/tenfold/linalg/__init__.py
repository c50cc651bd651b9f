"""Pure mathematics: tensors in, tensors out. No modules, no optimizers, nothing in place.

But for `tenfold.linalg.frank_wolfe.toward_`, which moves weights in the middle of a step.
"""

from tenfold.linalg.fold import Fold as Fold
from tenfold.linalg.projection import nuclear_subgradient as nuclear_subgradient
from tenfold.linalg.projection import project as project
from tenfold.linalg.proximal import row_subgradient as row_subgradient
from tenfold.linalg.proximal import shrink_rows as shrink_rows
from tenfold.linalg.proximal import shrink_spectrum as shrink_spectrum
from tenfold.linalg.slices import slice_spectra as slice_spectra
from tenfold.linalg.subspace import augment as augment
from tenfold.linalg.subspace import truncate_core as truncate_core
from tenfold.linalg.svd import energy_rank as energy_rank
from tenfold.linalg.svd import low_rank_factors as low_rank_factors
from tenfold.linalg.svd import singular_values as singular_values
from tenfold.linalg.svd import stable_rank as stable_rank
from tenfold.linalg.svd import tail_rank as tail_rank
from tenfold.linalg.svd import truncated_svd as truncated_svd
from tenfold.linalg.tucker import hooi as hooi
from tenfold.linalg.tucker import hosvd as hosvd
from tenfold.linalg.tucker import hosvd_bound as hosvd_bound
from tenfold.linalg.tucker import tucker_full as tucker_full
from tenfold.linalg.tucker import tucker_truncate as tucker_truncate
