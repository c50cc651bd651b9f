"""Data sets, in memory or streamed from the disk. A new data set is a new file here with a `data_set` reader in it."""

from tenfold.train.data.batching import Batches as Batches
from tenfold.train.data.batching import batches as batches
from tenfold.train.data.images import Images as Images
from tenfold.train.data.registry import data_names as data_names
from tenfold.train.data.registry import data_set as data_set
from tenfold.train.data.registry import load_data as load_data
from tenfold.train.data.split import Data as Data
from tenfold.train.data.split import Split as Split
from tenfold.train.data.split import make_data as make_data
