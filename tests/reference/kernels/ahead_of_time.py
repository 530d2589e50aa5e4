"""Compiles Triton kernels with no GPU: a JSON request a line on stdin, a JSON answer a line on stdout."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90)


def resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return {"registers": int(found[1]), "stack_bytes": int(found[2])}


def compiled(request: dict) -> dict[int, dict[str, int]]:
    module, name = request["kernel"].split(":")
    kernel = getattr(importlib.import_module(module), name)
    signature = request["signature"] | dict.fromkeys(request["constexprs"], "constexpr")
    order = {name: position for position, name in enumerate(kernel.arg_names)}
    attributes = {(order[name],): [["tt.divisibility", 16]] for name in request["divisible"]}
    answer = {}
    for capability in CAPABILITIES:
        source = ASTSource(
            fn=kernel, signature={name: signature[name] for name in kernel.arg_names},
            constexprs={(order[name],): value for name, value in request["constexprs"].items()}, attrs=attributes,
        )
        done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=request["options"])
        fused = done.asm["ptx"].count("fma.rn.f32")
        answer[capability] = {"shared_bytes": done.metadata.shared, "fused": fused, **resources(done.asm["cubin"])}
    return answer


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # compilers may print
    for line in sys.stdin:
        try:
            answer = compiled(json.loads(line))
        except Exception as error:  # whatever it is, the test that asked shows it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
