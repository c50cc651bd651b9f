"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels, values 0 to 16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tenfold.errors import DataError
from tenfold.train.data.registry import Sets, data_set
from tenfold.train.data.split import stratified

TEST_SHARE = 0.2
TEST_SEED = 1797


@data_set("digits")
def digits(root: Path | None) -> Sets:
    """Read the digits of scikit-learn; ``root`` is not looked at. The test set is a fixed, stratified fifth.

    Raises:
        DataError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("The digits come with scikit-learn, which is missing: pip install 'tenfold[train]'.") from error
    loaded: Any = load_digits()
    x = torch.from_numpy(loaded.images).to(torch.uint8).unsqueeze(1)
    y = torch.from_numpy(loaded.target).long()
    train, test = stratified(y, TEST_SHARE, TEST_SEED)
    return (x[train], y[train]), (x[test], y[test])
