"""Factorised layers made of plain torch layers; finding, replacing, costing and undoing them."""

from tenfold.layers.batchnorm import norm_after as norm_after
from tenfold.layers.batchnorm import reestimate_ as reestimate_
from tenfold.layers.convert import deploy as deploy
from tenfold.layers.convert import to_tucker as to_tucker
from tenfold.layers.cost import Cost as Cost
from tenfold.layers.cost import cost as cost
from tenfold.layers.matrix import LowRankConv as LowRankConv
from tenfold.layers.matrix import LowRankLinear as LowRankLinear
from tenfold.layers.swap import find as find
from tenfold.layers.swap import to_dense as to_dense
from tenfold.layers.tucker import TuckerConv as TuckerConv
