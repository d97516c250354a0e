"""Run an example in one of several processes and keep what it mixed and descended: NAME FOLDER ARGUMENTS…"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torch
from descent import named, recorded

if __name__ == "__main__":
    name, folder, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    module, pictures = importlib.import_module(name), importlib.import_module("pictures")
    parse = getattr(module, "parse", pictures.command_line(None).parse_args)
    with recorded() as run:
        model = module.train(parse(arguments))
    record = [(*named(step, model), batch) for step, batch in zip(run.steps, run.batches, strict=True)]
    torch.save(record, Path(folder) / f"{os.environ.get('LOCAL_RANK', '0')}.pt")
