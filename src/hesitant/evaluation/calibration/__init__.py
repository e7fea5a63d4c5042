"""Calibration after training: a temperature for every method, and with it an SNGP's mean-field factor.

``calibrate`` asks the method for the distributions that its answer is the mean of (``components``), holds a sample of
them (``sample``), and finds the temperature of least NLL (``likelihood``). Users call ``calibrate``.
"""

from hesitant.evaluation.calibration.calibrate import Calibration, CalibrationWarning, calibrate

__all__ = ["Calibration", "CalibrationWarning", "calibrate"]
