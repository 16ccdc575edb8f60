"""Every test runs on eight simulated CPU devices, with a cache of its own, and with few and fixed hypothesis examples."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# SciPy's fits are of a few numbers: where cores are busy, threads of BLAS make them tens of times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Shapes are tiny: what XLA would spend on better code for them, more than half of all the time of the tests, never comes back. Nor do
# the 32 parts into which it cuts each program, to compile them side by side.
os.environ["XLA_FLAGS"] = (f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
                           "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
                           "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1").strip()

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("tests", deadline=None, max_examples=20, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    """Stops everything when JAX was started too early to have eight devices."""
    assert jax.device_count() == 8, f"tests need 8 simulated CPU devices, found {jax.devices()}"


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory):
    """Where tests prepare data; LM_CACHE, so that none touches the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["LM_CACHE"] = str(folder)
    return folder
