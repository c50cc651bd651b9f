"""Budgets, plans and what is made of them: from the layers of a model to a smaller model, and to files."""

from tenfold.plans.budget import Budget as Budget
from tenfold.plans.plan import LayerPlan as LayerPlan
from tenfold.plans.plan import Plan as Plan
from tenfold.plans.problem import Problem as Problem
from tenfold.plans.problem import survey as survey
