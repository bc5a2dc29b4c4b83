"""How the Triton kernels are proven on a machine without a GPU.

- `interpreter`: repairs Triton's interpreter, which is silently wrong in bfloat16 and FP8.
- `probe`: what a launch reads and writes, lane by lane: bytes per tensor, writes per element.
- `configuration`, `codegen` and `machine_code`: compile every configuration for sm_90a, read the
  instructions.

The first two need TRITON_INTERPRET=1, the last needs it unset: two processes.
"""
