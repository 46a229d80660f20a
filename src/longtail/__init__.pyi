# The public names, for type checkers and, at run time, for `longtail/__init__.py`.
from . import data as data
from . import evaluation as evaluation
from . import losses as losses
from . import models as models
from .api import add_router as add_router
from .api import check as check
from .api import compare as compare
from .api import evaluate as evaluate
from .api import report as report
from .api import resume as resume
from .api import retrain_classifier as retrain_classifier
from .api import train as train
from .config.recipes import list_recipes as list_recipes
from .config.recipes import load_recipe as load_recipe
from .config.schema import Config as Config
from .evaluation import flops as flops
from .evaluation.metrics import Evaluation as Evaluation
from .folder_settings import choose_settings as choose_settings
from .inference import Prediction as Prediction
from .inference import Predictor as Predictor
from .inference import predict as predict
from .models.backbones import list_backbones as list_backbones
from .models.multi_expert import ExpertOutput as ExpertOutput
from .models.multi_expert import MultiExpert as MultiExpert
from .models.multi_expert import create_model as create_model
from .models.router import RoutedOutput as RoutedOutput
from .runs.model_file import ModelMetadata as ModelMetadata
from .runs.model_file import load_model as load_model
from .runs.model_file import save_model as save_model
from .runs.run import Run as Run
from .runtime.process import Stopped as Stopped
from .utils.errors import InputError as InputError

__version__: str
