"""A second device without hardware: it finds what would break on a GPU.

Importing this module gives PyTorch the device "gpu". Its tensors live in the CPU's memory, say
``device='gpu:0'``, refuse to meet CPU tensors of one dimension or more, and have no ``.numpy()``.
``CALLS`` counts operations: ``aten::_local_scalar_dense`` and ``tolist`` are reads, for which a
real GPU makes the program wait. It knows nothing of speed, of CUDA graphs or of half precision.

PyTorch's own means for backends written in Python (torch.utils.backend_registration, which it
calls experimental) and a wrapper subclass (torch.Tensor._make_wrapper_subclass).
"""

from collections import Counter

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

torch.__future__.set_swap_module_params_on_conversion(True)
backend_registration._setup_privateuseone_for_python_backend("gpu")
MAY_MIX = ("copy", "index.Tensor", "index_put", "_local_scalar", "set_")  # CUDA allows it, too
CALLS: Counter[str] = Counter()


def reads() -> int:
    """How often the program has waited for a number from the device."""
    return CALLS["aten::_local_scalar_dense"] + CALLS["tolist"]


def run(func, args: tuple, kwargs: dict):
    """One operation on the CPU twins of its arguments, after a look at their devices."""
    name = func.name()
    CALLS[name] += 1
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    own = [t for t in tensors if isinstance(t, DeviceTensor)]
    strangers = [t for t in tensors if not isinstance(t, DeviceTensor) and t.ndim > 0]
    if own and strangers and not any(part in name for part in MAY_MIX):
        where = [(t.device.type, tuple(t.shape)) for t in tensors]
        raise RuntimeError(f"expected all tensors on the same device: {name} {where}")
    target = kwargs.get("device")
    to_cpu = target is not None and torch.device(target).type == "cpu"

    def twin(value):
        if isinstance(value, DeviceTensor):
            return value.twin
        if isinstance(value, torch.device) and value.type != "cpu":
            return torch.device("cpu")
        return value

    out = func(*tree_map(twin, args), **tree_map(twin, kwargs))
    written = [
        args[i] if i < len(args) else kwargs.get(argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if written:  # in place, or into out=: the caller's own tensors come back
        count = len(func._schema.returns)
        return None if count == 0 else written[0] if count == 1 else tuple(written[:count])
    return out if to_cpu else tree_map(wrap, out)


def wrap(value):
    """A CPU tensor as a tensor of the device; anything else as it is."""
    plain = isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor)
    return DeviceTensor(value) if plain else value


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on "gpu" and keeps its numbers in ``twin``, on the CPU."""

    @staticmethod
    def __new__(cls, twin):
        options = {"strides": twin.stride(), "storage_offset": twin.storage_offset()}
        options |= {"dtype": twin.dtype, "layout": twin.layout, "device": "gpu:0"}
        made = torch.Tensor._make_wrapper_subclass(cls, twin.size(), **options)
        made.twin = twin.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, dict(kwargs or {}))

    # What PyTorch's C++ does for real devices and refuses for subclasses:
    def __repr__(self):
        return f"DeviceTensor({self.twin})"

    def __format__(self, spec):
        return format(self.twin.item() if self.ndim == 0 else repr(self), spec)

    def tolist(self):
        CALLS["tolist"] += 1
        return self.twin.tolist()

    def __getitem__(self, index):
        lists = index if isinstance(index, tuple) else (index,)
        index = tuple(torch.as_tensor(i) if isinstance(i, list) else i for i in lists)
        return torch.Tensor.__getitem__(self, index)

    def __deepcopy__(self, memo):
        copy = DeviceTensor(self.twin.clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        else:
            copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy


def tensor(data, *args, device=None, **options):
    """``torch.tensor`` with a device: made on the CPU, then moved."""
    made = on_cpu(data, *args, **options)
    return made if device is None else made.to(device)


on_cpu, torch.tensor = torch.tensor, tensor
_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
torch.gpu.synchronize = lambda *_: None
torch.gpu.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
