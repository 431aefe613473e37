"""Importing the library is cheap."""

import subprocess
import sys


def test_importing_imports_neither_torch_nor_pyarrow():
    code = (
        "import sys, shoal.train, shoal.train.torch, shoal.train.session\n"
        "from shoal.train import Checkpoint, RunConfig, Result, FailureConfig, CheckpointConfig, ScalingConfig, report\n"
        "from shoal.train.torch import TorchTrainer\n"
        "print([name for name in ('torch', 'pyarrow', 'numpy', 'pandas', 'grpc', 'fsspec') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_all_names_are_there():
    import shoal.train
    import shoal.train.torch

    for module in (shoal.train, shoal.train.torch):
        for name in module.__all__:
            assert getattr(module, name) is not None
        assert set(module.__all__) <= set(dir(module))
    assert not hasattr(shoal.train, "absent")
    assert not hasattr(shoal.train.torch, "absent")
