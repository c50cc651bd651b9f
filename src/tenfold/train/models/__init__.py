"""Reference networks, named as in the papers. A new network is a new file here with a `network` factory in it."""

from tenfold.train.models.registry import build_model as build_model
from tenfold.train.models.registry import model_names as model_names
from tenfold.train.models.registry import network as network
