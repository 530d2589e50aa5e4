from harness.adapters.pytest_benchmark import (
    bench,
    case,
    pytest_addoption,
    pytest_benchmark_compare_machine_info,
    pytest_benchmark_update_machine_info,
    pytest_generate_tests,
)

__all__ = [
    "bench",
    "case",
    "pytest_addoption",
    "pytest_benchmark_compare_machine_info",
    "pytest_benchmark_update_machine_info",
    "pytest_generate_tests",
]
