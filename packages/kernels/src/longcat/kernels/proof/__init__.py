"""How the Triton kernels are proven on a machine without a GPU.

- `interpreter`: repairs Triton's interpreter, which is silently wrong in bfloat16 and FP8.
- `calls`: a small good call of every op, for what is proven of all of them alike.
- `probe`: what a launch reads and writes, lane by lane: bytes per tensor, writes per element.
- `configuration`, `codegen` and `machine_code`: compile every configuration for sm_90a, read the
  instructions.
- `roofline`: what every op must move and compute at LongCat-Flash's sizes, and its limit.

`interpreter` and `probe` need TRITON_INTERPRET=1, `codegen` needs it unset: two processes.
"""
