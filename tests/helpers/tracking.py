"""A tracker that keeps what it is sent, and the reader of TensorBoard's files."""

from typing import ClassVar

from longtail.tracking import Tracker


class Recorder(Tracker):
    """Keeps all calls in the class. Its state file says which epochs it has.

    ``fails_at`` is where it fails, and the error: ("close", None, ConnectionError) or ("train", 1, ConnectionError).
    """

    calls: ClassVar[list] = []
    fails_at: ClassVar[tuple] = ()

    def __init__(self, run):
        self.run = run
        self.call("start", run)

    def call(self, *call):
        self.calls.append(call)
        if call[0] == "epoch":
            self.run.write_state("recorder", self.run.read_state("recorder") | {call[1]: call[2]})
        if self.fails_at and self.fails_at[:2] in ((call[0], None), call[1:3]):
            raise self.fails_at[2]("no network")

    def last_epoch(self, stage):
        return self.run.read_state("recorder").get(stage, 0)

    def log_epoch(self, stage, epoch, metrics):
        self.call("epoch", stage, epoch, metrics)

    def log_results(self, epoch, metrics, plots):
        self.call("results", epoch, metrics, plots)

    def close(self, is_complete):
        self.call("close", is_complete)


def event_reader(folder):
    """TensorBoard's own reader of a folder, with all events read."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return reader.Reload()


def steps_by_tag(folder):
    """The steps of each scalar in TensorBoard's files, by its tag."""
    reader = event_reader(folder)
    return {tag: [event.step for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
