"""Training: networks, data, schedules, and the only loop."""

from tenfold.train.checkpoint import Parts as Parts
from tenfold.train.checkpoint import load_checkpoint as load_checkpoint
from tenfold.train.checkpoint import read_record as read_record
from tenfold.train.checkpoint import save_checkpoint as save_checkpoint
from tenfold.train.data import Data as Data
from tenfold.train.data import Split as Split
from tenfold.train.data import batches as batches
from tenfold.train.data import data_names as data_names
from tenfold.train.data import load_data as load_data
from tenfold.train.data import make_data as make_data
from tenfold.train.history import Epoch as Epoch
from tenfold.train.history import Fit as Fit
from tenfold.train.loop import Trainable as Trainable
from tenfold.train.loop import fit as fit
from tenfold.train.models import build_model as build_model
from tenfold.train.models import model_names as model_names
from tenfold.train.recipe import Recipe as Recipe
from tenfold.train.score import Score as Score
from tenfold.train.score import evaluate as evaluate
