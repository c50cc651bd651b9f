"""Training in Tucker format: an integrator around any optimizer, whose ranks follow the training."""

from tenfold.optim.tucker.integrator import Integrator as Integrator
from tenfold.optim.tucker.settings import IntegratorSettings as IntegratorSettings
