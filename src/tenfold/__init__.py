"""tenfold: smaller, faster neural networks by low-rank weights, while they train or after.

What compresses is loaded with the package. What trains and measures is loaded when it is first used: `bench`, `train`,
and the names that come from there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tenfold import integrations as integrations
from tenfold import linalg as linalg
from tenfold import runtimes as runtimes
from tenfold.errors import ArgumentError as ArgumentError
from tenfold.errors import BudgetError as BudgetError
from tenfold.errors import CheckpointError as CheckpointError
from tenfold.errors import DataError as DataError
from tenfold.errors import PlanError as PlanError
from tenfold.errors import TenfoldError as TenfoldError
from tenfold.errors import TenfoldWarning as TenfoldWarning
from tenfold.errors import UnsupportedLayer as UnsupportedLayer
from tenfold.layers.batchnorm import norm_after as norm_after
from tenfold.layers.batchnorm import reestimate_ as reestimate_
from tenfold.layers.cost import Cost as Cost
from tenfold.layers.cost import cost as cost
from tenfold.layers.fold_batchnorm import fold_batchnorm as fold_batchnorm
from tenfold.layers.matrix import LowRankConv as LowRankConv
from tenfold.layers.matrix import LowRankLinear as LowRankLinear
from tenfold.layers.refit import RefitReport as RefitReport
from tenfold.layers.refit import refit_ as refit_
from tenfold.layers.swap import to_dense as to_dense
from tenfold.layers.tucker import TuckerConv as TuckerConv
from tenfold.layers.tucker_model import deploy as deploy
from tenfold.linalg import balls as balls
from tenfold.methods import get_method as get_method
from tenfold.methods import list_methods as list_methods
from tenfold.methods.activation_svd import ActivationSVD as ActivationSVD
from tenfold.methods.alds import ALDS as ALDS
from tenfold.methods.calibrated import Calibrated as Calibrated
from tenfold.methods.contract.builder import compress as compress
from tenfold.methods.contract.builder import plan as plan
from tenfold.methods.contract.method import Goal as Goal
from tenfold.methods.contract.method import Method as Method
from tenfold.methods.contract.training_run import TrainingRun as TrainingRun
from tenfold.methods.contract.training_run import begin as begin
from tenfold.methods.dense import Dense as Dense
from tenfold.methods.factors import Factors as Factors
from tenfold.methods.fisher_svd import FisherSVD as FisherSVD
from tenfold.methods.group_lasso import GroupLasso as GroupLasso
from tenfold.methods.l_rank import LRank as LRank
from tenfold.methods.lrpet import LRPET as LRPET
from tenfold.methods.nuclear_norm import NuclearNorm as NuclearNorm
from tenfold.methods.pca import PCA as PCA
from tenfold.methods.sfw import SFW as SFW
from tenfold.methods.svd import SVD as SVD
from tenfold.methods.svd_energy import SVDEnergy as SVDEnergy
from tenfold.methods.tdlrt import TDLRT as TDLRT
from tenfold.methods.trp import TRP as TRP
from tenfold.methods.tucker import Tucker as Tucker
from tenfold.methods.vbmf import VBMF as VBMF
from tenfold.optim.label_free import DistillReport as DistillReport
from tenfold.optim.label_free import distill as distill
from tenfold.plans.apply import Report as Report
from tenfold.plans.apply import Result as Result
from tenfold.plans.apply import apply as apply
from tenfold.plans.budget import Budget as Budget
from tenfold.plans.plan import LayerPlan as LayerPlan
from tenfold.plans.plan import Plan as Plan
from tenfold.plans.pretrained import from_pretrained as from_pretrained
from tenfold.plans.problem import Problem as Problem
from tenfold.plans.problem import survey as survey
from tenfold.plans.prune_filters import Pruned as Pruned
from tenfold.plans.prune_filters import prune_filters as prune_filters
from tenfold.plans.serialization import load as load
from tenfold.plans.serialization import save as save
from tenfold.runtimes.optimize import optimize_for_inference as optimize_for_inference

if TYPE_CHECKING:
    from tenfold import bench as bench
    from tenfold import train as train
    from tenfold.bench.sweep import FilterCut as FilterCut
    from tenfold.bench.sweep import RankCut as RankCut
    from tenfold.bench.sweep import SweepRow as SweepRow
    from tenfold.bench.sweep import sweep as sweep
    from tenfold.train.models import build_model as build_model
else:  # out of the sight of type checkers, for whom a module with `__getattr__` has every name
    _LATER = {
        "bench": "tenfold",
        "train": "tenfold",
        "FilterCut": "tenfold.bench.sweep",
        "RankCut": "tenfold.bench.sweep",
        "SweepRow": "tenfold.bench.sweep",
        "sweep": "tenfold.bench.sweep",
        "build_model": "tenfold.train.models",
    }

    def __getattr__(name: str) -> Any:
        """The names that are loaded when they are first used."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _LATER[name]
        found = import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)
        return globals().setdefault(name, found)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})
