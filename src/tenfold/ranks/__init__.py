"""How much rank where: from the options of each layer and a budget to a plan."""

from tenfold.ranks.plan import Budget as Budget
from tenfold.ranks.plan import LayerPlan as LayerPlan
from tenfold.ranks.plan import Plan as Plan
from tenfold.ranks.problem import Problem as Problem
from tenfold.ranks.problem import survey as survey
