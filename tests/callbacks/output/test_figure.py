"""The picture at the end of fit: to every kind of logger, and never in a training's way."""

import inspect
import io
import sys
import types
import warnings
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import pytest
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from matplotlib.figure import Figure

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.callbacks.output import figure as figure_module
from tests.helpers.expected_warnings import CANNOT_MEASURE, hearing
from tests.helpers.training import KeepSteps, Regression, fit, regression_loader, scripted

pytestmark = [
    CANNOT_MEASURE,
    # Lightning's own, of what tensorboard imports.
    pytest.mark.filterwarnings("ignore:.*PyType_Spec with a metaclass.*:DeprecationWarning"),
]
WARNING = "bsscale: the picture of the run was not logged"


class StandIn(KeepSteps):
    """A logger whose experiment is that of a service."""

    def __init__(self, experiment):
        super().__init__()
        self.experiment = experiment


class WandbStandIn(StandIn):
    """As Lightning's WandbLogger: the logger takes images, the experiment does not."""

    def __init__(self):
        super().__init__(types.SimpleNamespace(id="1"))
        self.images = []

    def log_image(self, key, images, step=None, **kwargs):
        self.images.append((key, images, step, kwargs))


class MLFlowStandIn(StandIn):
    """As Lightning's MLFlowLogger, whose experiment is a client that must be told the run."""

    run_id = "run 7"

    def __init__(self):
        self.figures = []
        super().__init__(self)

    def log_figure(self, run_id, figure, artifact_file, *, save_kwargs=None):
        self.figures.append((run_id, figure, artifact_file))


class CometStandIn(StandIn):
    """As Lightning's CometLogger."""

    def __init__(self):
        self.figures = []
        super().__init__(self)

    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None, metadata=None, format="auto"):
        self.figures.append((figure_name, figure, step))


def trained(callback, logger, **settings):
    """Two epochs of 60 examples in windows of 4 or 8."""
    module = Regression()
    return fit(module, regression_loader(60), [callback], max_epochs=2, logger=logger, log_every_n_steps=5, **settings)


def test_the_stand_ins_are_like_the_real_ones():
    """Lightning's loggers can be looked at without what they log to."""
    own, real = (inspect.signature(cls.log_image).parameters for cls in (WandbStandIn, WandbLogger))
    assert list(own) == list(real)
    assert "run_id" in dir(MLFlowLogger)
    for cls in (WandbLogger, MLFlowLogger, CometLogger, TensorBoardLogger, CSVLogger):
        assert "experiment" in dir(cls)
    for cls in (MLFlowLogger, CometLogger, TensorBoardLogger, CSVLogger):
        assert not hasattr(cls, "log_image")


def test_each_service_gets_it_in_its_own_way(tmp_path):
    plt.close("all")  # what other tests left
    loggers = [WandbStandIn(), MLFlowStandIn(), CometStandIn(), TensorBoardLogger(tmp_path)]
    scaler = scripted(8, log_figure=True)
    trainer = trained(scaler, loggers)
    step = trainer.global_step - 1
    ((key, (figure,), at, kwargs),) = loggers[0].images
    assert (key, at, kwargs) == ("bsscale/run", step, {})
    assert isinstance(figure, Figure)
    assert loggers[1].figures == [("run 7", figure, "bsscale/run.png")]
    assert loggers[2].figures == [("bsscale/run", figure, step)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(loggers[3].log_dir)
    events.Reload()
    (image,) = events.Images("bsscale/run")
    assert image.step == step
    assert (image.width, image.height) > (400, 300)
    assert len(figure.axes) == 2  # noise scale and batch, learning rate
    assert plt.get_fignums() == []  # nothing opens a window, and nothing is kept


@pytest.mark.parametrize("callback", [GradientNoiseScaleMonitor, BatchSizeScaler])
def test_a_logger_without_pictures_has_it_in_its_folder(callback, tmp_path):
    logger = CSVLogger(tmp_path, name="logs", version=0)
    trained(callback(log_figure=True, split=False), logger)
    folder = Path(logger.log_dir)
    assert (folder / "bsscale.png").read_bytes().startswith(b"\x89PNG")
    trained(callback(log_figure=True, split=False), logger)  # nothing is replaced
    assert (folder / "bsscale-v1.png").exists()


@pytest.mark.parametrize("logger", [False, KeepSteps()])
def test_without_a_folder_it_is_in_the_trainers(logger, tmp_path):
    trained(scripted(8, log_figure=True), logger, default_root_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bsscale.png"]


def test_it_is_asked_for_and_has_the_step_that_is_asked_for():
    quiet, counting = CometStandIn(), CometStandIn()
    trained(scripted(8), quiet)
    assert quiet.figures == []
    trained(scripted(8, log_figure=True, log_step="examples", log_prefix="gns "), counting)
    ((name, _, step),) = counting.figures
    assert (name, step) == ("gns run", 120)


def test_after_an_exception_it_is_logged_as_well():
    class Breaks(Regression):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 12:
                raise ValueError("mine")

    logger = CometStandIn()
    scaler = BatchSizeScaler(log_figure=True, warmup=0, measure_every=1)
    with pytest.raises(ValueError, match="mine"):
        fit(Breaks(), regression_loader(60), [scaler], max_epochs=1, logger=logger)
    assert len(logger.figures) == 1


class Raises(StandIn):
    """Fails as a service that is out of reach does."""

    def __init__(self):
        super().__init__(self)

    def add_figure(self, tag, figure, global_step=None, close=True, walltime=None):
        raise ConnectionError("no route to host")


class InFolder(KeepSteps):
    log_dir = None

    def __init__(self, folder):
        super().__init__()
        self.log_dir = folder


def broken_folder(tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    return InFolder(str(tmp_path / "taken" / "logs"))


def remote_folder(tmp_path):
    return InFolder("s3://bucket/logs")


PROBLEMS = {
    "a logger that raises": (lambda path: Raises(), "Raises: ConnectionError: no route to host"),
    "no folder": (broken_folder, "InFolder: .*Error"),
    "a remote folder": (remote_folder, "InFolder: ValueError: s3:.* is not on this machine"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("is_error", [False, True])
def test_no_problem_stops_a_training_and_the_other_loggers_have_it(problem, is_error, tmp_path, monkeypatch):
    """Also where warnings are errors, as they are in these tests."""
    monkeypatch.chdir(tmp_path)
    make, words = PROBLEMS[problem]
    good, scaler = CometStandIn(), scripted(8, log_figure=True)
    loggers = [make(tmp_path), good]
    if is_error:
        trainer = trained(scaler, loggers)
    else:
        with hearing(WARNING) as said:
            trainer = trained(scaler, loggers)
        (text,) = said
        with hearing(f"{WARNING} .*{words}") as matching:
            warnings.warn(text, stacklevel=1)
        assert matching
    assert trainer.state.finished
    assert scaler.examples_seen == 120
    assert len(good.figures) == 1
    assert not (tmp_path / "s3:").exists()


def test_a_full_disk_leaves_no_half_a_file(tmp_path):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    def open_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return Full(path, "w"), path

    logger = CSVLogger(tmp_path, name="logs", version=0)
    with mock.patch.object(figure_module, "open_new", open_full), hearing(f"{WARNING} .*No space left") as said:
        trainer = trained(scripted(8, log_figure=True), logger)
    assert len(said) == 1
    assert trainer.state.finished
    assert not list(tmp_path.rglob("*.png"))


def test_a_picture_that_cannot_be_drawn_is_one_warning():
    logger, scaler = CometStandIn(), scripted(8, log_figure=True)
    scaler._draw = mock.Mock(side_effect=RuntimeError("no font"))
    with hearing(f"{WARNING} .it could not be drawn: RuntimeError: no font") as said:
        trained(scaler, logger)
    assert len(said) == 1
    assert logger.figures == []


def test_without_matplotlib_one_warning_comes_early_enough():
    logger, steps = CometStandIn(), []

    class Notes(Regression):
        def on_train_start(self):
            steps.append(len(said))

    with mock.patch.dict(sys.modules, {"matplotlib": None}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = caught
        fit(Notes(), regression_loader(20), [scripted(8, log_figure=True)], max_epochs=1, logger=logger)
    ours = [str(one.message) for one in caught if "log_figure" in str(one.message) or WARNING in str(one.message)]
    assert len(ours) == 1
    assert "pip install 'lightning-bsscale[plot]'" in ours[0]
    assert steps[0] > 0  # before training
    assert logger.figures == []


def test_a_logger_that_is_no_logger_of_ours_is_left_alone():
    """A logger of the user's without an experiment and without a folder."""

    class Own(Logger):
        name, version = "own", 0

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, *args, **kwargs):
            pass

    with mock.patch.object(figure_module, "_save") as save:
        trained(scripted(8, log_figure=True), Own())
    assert save.call_count == 1
