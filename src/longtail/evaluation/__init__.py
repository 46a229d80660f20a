"""From the outputs of a model to numbers: accuracy, calibration, routing, label shift, cost, speed."""
