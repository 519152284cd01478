"""Run by test_fused_attention.py: assembles the kernels for a card that is not there.

Prints, for each of them as it is launched for 197 tokens of 64 features, the bytes that a thread
puts aside for want of registers, those of shared memory, and its accesses of less than 16 bytes.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from beit.nn import fused_kernels
from beit.nn.fused_kernels import FORWARD, OF_KEYS_AND_VALUES, OF_QUERIES, Blocks

HOPPER = GPUTarget("cuda", 90, 32)
READER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
HALVES = ("projected", "mixed", "gradient", "of_projected", "of_scores")
TYPES = {
    **dict.fromkeys(HALVES, "*bf16"),
    **dict.fromkeys(("bias", "normalisers"), "*fp32"),
    **dict.fromkeys(("tokens", "row_stride"), "i32"),
    "scale": "fp32",
}


def assembled(kernel: Any, blocks: Blocks, folder: Path) -> dict[str, int]:
    names = kernel.arg_names
    given = {"heads": 12, "features": 64}
    given |= {"queries_at_once": blocks.queries, "keys_at_once": blocks.keys}
    aligned = [n for n in names if TYPES.get(n, "").startswith("*") or n == "row_stride"]
    source = ASTSource(
        fn=kernel,
        signature={name: TYPES.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in given.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    made = triton.compile(source, target=HOPPER, options=options)
    binary = folder / "kernel.cubin"
    binary.write_bytes(made.asm["cubin"])
    told = subprocess.run(
        [READER, "--dump-resource-usage", binary], capture_output=True, text=True, check=True
    )
    small = re.findall(r"(?:ld|st)\.global\.b(?:8|16)\b", made.asm["ptx"])
    return {
        "stack": int(re.findall(r"STACK:(\d+)", told.stdout)[-1]),
        "shared": made.metadata.shared,
        "small": len(small),
    }


def main() -> None:
    launched = {
        "_forward": FORWARD,
        "_of_keys_and_values": OF_KEYS_AND_VALUES,
        "_of_queries": OF_QUERIES,
    }
    folder = Path(sys.argv[1])
    found = {
        name: assembled(getattr(fused_kernels, name), blocks, folder)
        for name, blocks in launched.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
