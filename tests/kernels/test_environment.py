"""How kernels run is settled before anybody imports Triton; where it cannot be, that is said."""

import os
import subprocess
import sys

import pytest

from foredraft.kernels.environment import VARIABLE

ADD = "from foredraft.kernels.vector_add import vector_add; import torch; x = torch.ones(3); "


def ran(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, without what these tests have set."""
    without = {name: value for name, value in os.environ.items() if name != VARIABLE}
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**without, **hidden, **environment},
        check=False,
        capture_output=True,
        text=True,
    )


def test_without_a_cuda_device_kernels_are_interpreted():
    told = ran(f"{ADD} print(vector_add(x, x).tolist())")
    assert told.stdout == "[2.0, 2.0, 2.0]\n", told.stderr


@pytest.mark.parametrize(
    ("before", "environment"), [("import triton; ", {}), ("", {VARIABLE: "0"})]
)
def test_where_triton_compiles_a_tensor_on_the_cpu_is_refused_in_words(before, environment):
    told = ran(f"{before}{ADD} vector_add(x, x)", **environment)
    assert "ValueError: x is on cpu, and Triton compiles here" in told.stderr
    assert f"set {VARIABLE}=1" in told.stderr


def test_where_there_is_no_triton_that_is_said_and_the_rest_can_be_imported():
    hide = "import sys; sys.modules['triton'] = None; import foredraft.kernels; "
    assert ran(f"{hide}import foredraft.sampling").returncode == 0
    told = ran(f"{hide}import foredraft.kernels.vector_add")
    assert "foredraft.kernels need triton, which is built for Linux alone" in told.stderr


def test_importing_the_package_of_kernels_imports_neither_torch_nor_triton():
    code = "import sys, foredraft.kernels; sys.exit(bool({'torch', 'triton'} & set(sys.modules)))"
    assert ran(code).returncode == 0
