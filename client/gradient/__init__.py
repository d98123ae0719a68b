"""Gradient: the clipped gradients of a batch, summed; several ways to the same numbers.

in        a model with one loss a sample, a Batch, the names of the parameters that are trained
out       parameter -> sum of per-sample gradients, each clipped; private_training.py adds the noise
relies on the model treating samples one by one; no layer may mix the rows of a batch
"""

from client.gradient.choice import choose_engine
from client.gradient.engine import GradientEngine, SampleModel

__all__ = ["GradientEngine", "SampleModel", "choose_engine"]
