"""A tracker that notes what it is told."""


class TrackerLog:
    name = "the log"

    def __init__(self):
        self.told = []
        self.histories = []

    def begin(self, settings, layers):
        self.told.append(("begin", settings.beta, list(layers)))

    def epoch(self, epoch, report, history, logs):
        assert report is history[-1]
        self.told.append(("epoch", epoch, report.aiq, float(logs["val_aiq"])))

    def end(self, history):
        self.told.append(("end", len(history)))
        self.histories.append(history)
