"""``python -m sopt_kernels``: which body each op would use here, and why not the others."""

from . import _native, backends

print("libsopt_cpu level:", _native.cpu_level() or _native.UNAVAILABLE["cpu"])
for body in backends():
    state = "in use" if body.selected else body.reason or "available"
    print(f"{body.op:20}{body.device_type:6}{body.backend:11}{state}")
