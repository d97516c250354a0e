"""Imported once by the server that forks workers: one small analysis imports what every analysis needs."""

import torch
from torch import nn

from tlfx.trace import trace

__all__: list[str] = []

torch.set_num_threads(1)  # a process that is forked must not have threads
trace(nn.Conv2d(3, 8, 4, 4), torch.zeros(2, 3, 8, 8)).rewrite()
