"""Factorised layers made of plain torch layers; finding, replacing, costing and undoing them."""

from tenfold.layers.batchnorm import norm_after as norm_after
from tenfold.layers.batchnorm import reestimate_ as reestimate_
from tenfold.layers.cost import Cost as Cost
from tenfold.layers.matrix import LowRankConv as LowRankConv
from tenfold.layers.matrix import LowRankLinear as LowRankLinear
from tenfold.layers.swap import to_dense as to_dense
from tenfold.layers.tucker import TuckerConv as TuckerConv
from tenfold.layers.tucker_model import deploy as deploy
from tenfold.layers.tucker_model import to_tucker as to_tucker
