"""torch made to believe in an H100, for tensors with a device, a type and a shape but no numbers.

Run as a program, for what it does must come before torch is first imported:

    python pretend_cuda.py rules PRECISION COMPILED   a training step of BERT-large under `Rules`
    python pretend_cuda.py kernels                    the compiled parts as Triton kernels for sm_90

The first needs a C++ compiler, the second the package triton, too. The last line is JSON.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

STUB = Path(__file__).with_name("pretend_cuda.cpp")


def load_stub() -> None:
    """Build the stub, which says yes where torch asks for CUDA, and load it before torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder = Path(spec.origin).parent
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/stub.so"
        subprocess.run(
            [
                *("g++", "-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder}/include"),
                *(str(STUB), "-o", library, f"-L{torch_folder}/lib", "-ltorch_cpu", "-lc10"),
            ],
            check=True,
        )
        for name in (
            f"{torch_folder}/lib/libc10.so",
            f"{torch_folder}/lib/libtorch_cpu.so",
            library,
        ):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def pretend_h100() -> None:
    """Answer Python's questions about the device. Call it before torch._dynamo is imported."""
    import torch

    class Properties:
        name, major, minor, gcnArchName, uuid = "H100", 9, 0, "", "0"
        total_memory, L2_cache_size = 80 << 30, 50 << 20
        multi_processor_count, warp_size = 132, 32
        regs_per_multiprocessor, max_threads_per_multi_processor = 65536, 2048
        max_threads_per_block, shared_memory_per_block = 1024, 49152
        shared_memory_per_block_optin, shared_memory_per_multiprocessor = 232448, 233472

    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: Properties(),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_, **__: None,
        "_exchange_device": lambda index: 0,
        "_maybe_exchange_device": lambda index: 0,
        "synchronize": lambda *_: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.version.cuda = "12.8"


def rules() -> dict[str, Any]:
    """A training step of BERT-large on a packed row, in each low precision; each rule broken."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        steps = {
            f"{precision}, attention dropout {dropout}": training_step(precision, dropout)
            for precision, dropout in (("bf16", 0.1), ("bf16_autocast", 0.0))
        }
        on_gpu = torch.zeros(16, 3, 2, 8, device="cuda", dtype=torch.bfloat16)
        half = on_gpu[:, 0]
        ends = torch.zeros(3, device="cuda", dtype=torch.int32)

        def flash(q: torch.Tensor, ends: torch.Tensor) -> None:
            from torch.nn.attention.varlen import varlen_attn

            varlen_attn(q, q, q, ends, ends, 8, 8)

        broken = {
            "two types in a product": lambda: half[0] @ half[0].float().t(),
            "fp32 in attention": lambda: flash(half.float(), ends),
            "heads that are not contiguous": lambda: flash(half.transpose(1, 2), ends),
            "borders of 64 bits": lambda: flash(half, ends.long()),
            "a tensor on the CPU": lambda: half.cpu() + 1,
            "a wait for a number": lambda: half.sum().item(),
            "a wait for positions": lambda: half[half > 0],
        }
        refused = {name: is_refused(call) for name, call in broken.items()}
        accepted = not is_refused(lambda: flash(half, ends))
    return {"steps": steps, "refused": refused, "accepted": accepted}


def training_step(precision: str, dropout: float) -> dict[str, Any]:
    """Forward, backward and update of the product's own parts, with engine.py's losses."""
    import torch

    from data_prep.core.config import compose
    from data_prep.core.objectives import Pairing
    from pretrain.config.settings import Settings
    from pretrain.data.packing import PackedBatch
    from pretrain.model.bert import BertForPreTraining
    from pretrain.optim.optimizers import build_optimizer, parameter_groups

    settings, _ = compose("config", Settings, ["+model=large"])
    settings.model.attention_probs_dropout_prob = dropout
    is_autocast = precision == "bf16_autocast"
    torch.set_default_dtype(torch.float32 if is_autocast else torch.bfloat16)
    with torch.device("cuda"):
        model = BertForPreTraining(settings.model, 30_522, Pairing.nsp).train()
        tokens, sequences, masked = 8_192, 48, 1_232
        batch = PackedBatch(
            **{
                name: torch.zeros(size, dtype=torch.int64)
                for name, size in {
                    "cls_positions": sequences, "next_sentence_labels": sequences,
                    "masked_positions": masked, "labels": masked,
                }.items()
            },
            input_ids=torch.zeros(tokens, dtype=torch.int32),
            position_ids=torch.zeros(tokens, dtype=torch.int32),
            segment_ids=torch.zeros(tokens, dtype=torch.int32),
            cu_seqlens=torch.zeros(sequences + 1, dtype=torch.int32),
            lengths=[],  # nothing may look at them
            max_seqlen=512,
            num_tokens=tokens,
            num_sequences=sequences,
            num_masked=masked,
        )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    optimizer = build_optimizer(parameter_groups(model, 0.01), settings.optim)
    with Rules() as seen:
        with torch.autocast("cuda", torch.bfloat16, enabled=is_autocast):
            mlm_loss, pair_loss, *_ = model(batch)
        (mlm_loss / masked + pair_loss / sequences).backward()
        optimizer.step()
    gradients = [parameter.grad for parameter in model.parameters()]
    return {
        "operations": seen.operations,
        "attention_calls": seen.attention_calls,
        "types_of_products": sorted(seen.types_of_products),
        "gradients_on_cuda": all(g is not None and g.is_cuda for g in gradients),
    }


def kernels() -> dict[str, Any]:
    """The compiled parts at BERT-large's size, forward and backward, as inductor builds for sm_90.

    What it generates is kept and not loaded; triton builds each kernel with its own ptxas.
    """
    import torch._inductor.config
    import torch._inductor.runtime.triton_helpers
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from data_prep.core.config import compose
    from pretrain.config.settings import Settings
    from pretrain.model.bert import Layer, _sums

    class Driver:
        utils = None
        get_current_device = get_current_stream = staticmethod(lambda *_: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_active_torch_device = staticmethod(lambda: torch.device("cuda", 0))

    driver.set_active(Driver())
    # these would try their patterns out on the device
    fuse_attention._sfdp_init = pad_mm._pad_mm_init = lambda *_, **__: None
    misc_patterns._misc_patterns_init = lambda *_, **__: None
    torch._inductor.runtime.triton_helpers.set_driver_to_gpu = lambda: None
    torch._inductor.config.compile_threads = 1
    torch._inductor.config.fx_graph_cache = False
    torch._inductor.config.joint_graph_constant_folding = False  # on the device
    codes: list[str] = []

    def keep_code(lowering: Any) -> Any:
        code = lowering.codegen()[0]
        codes.append(getattr(code, "value", code))
        raise CodeIsKept

    GraphLowering.compile_to_module = keep_code
    mode = FakeTensorMode()

    def partition(joint: Any, *args: Any, **kwargs: Any) -> Any:
        with V.set_fake_mode(mode):
            joint_graph_passes(joint)
        return min_cut_rematerialization_partition(joint, *args, **kwargs, compiler="inductor")

    def built(function: Any, *inputs: Any) -> dict[str, Any]:
        graphs: list[Any] = []

        def keep_graph(graph: Any, _: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        outputs = aot_function(
            function, keep_graph, keep_graph, partition, decompositions=select_decomp_table()
        )(*inputs)
        outputs.float().sum().backward()
        passes = zip(("forward", "backward"), graphs, strict=True)
        return {name: built_pass(graph, name, mode, codes) for name, graph in passes}

    settings, _ = compose("config", Settings, ["+model=large"])
    settings.model.attention_probs_dropout_prob = 0.0
    tokens, masked, hidden = 8_192, 1_232, settings.model.hidden_size
    torch.set_default_dtype(torch.bfloat16)
    with mode, torch.device("cuda"):
        layer = Layer(settings.model).train()
        x = torch.zeros(tokens, hidden, requires_grad=True)
        ends = torch.zeros(49, dtype=torch.int32)
        logits = torch.zeros(masked, 30_528, requires_grad=True)
        labels = torch.zeros(masked, dtype=torch.int64)
    names, weights = zip(*layer.named_parameters(), strict=True)

    def run_layer(x: torch.Tensor, ends: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        batch = types.SimpleNamespace(cu_seqlens=ends, max_seqlen=512)
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x, batch))

    def run_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _sums(logits, labels)[0]

    with mode:
        return {
            "layer": built(run_layer, x, ends, *weights),
            "loss": built(run_loss, logits, labels),
        }


class CodeIsKept(Exception):
    """Code for a GPU was made, and is not to be loaded."""


def built_pass(graph: Any, name: str, mode: Any, codes: list[str]) -> dict[str, Any]:
    """The number of products and kernels of a graph, and the size in bytes of each kernel built."""
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.debug import DebugContext
    from torch._inductor.virtualized import V

    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        try:
            compile_fx_inner(graph, inputs, is_backward=name == "backward", graph_id=0)
        except Exception as error:
            if "CodeIsKept" not in repr(error):
                raise
    code = codes[-1]
    quotes = "'" * 3
    pattern = rf"async_compile\.triton\('(\w+)', {quotes}(.*?){quotes}, device_str='cuda'\)"
    sizes = []
    for kernel, source in re.findall(pattern, code, re.DOTALL):
        path = Path(tempfile.mkdtemp()) / "kernel.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(kernel, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[kernel] = module
        spec.loader.exec_module(module)
        autotuner = getattr(module, kernel)
        autotuner.precompile(warm_cache_only=True)
        sizes.append(Path(autotuner.compile_results[0].kernel.cubin_path).stat().st_size)
    products = len(re.findall(r"extern_kernels\.(?:add)?mm\(", code))
    return {"products": products, "cubins": sizes, "attention": code.count("_varlen_attn")}


def is_refused(call: Callable[[], Any]) -> bool:
    try:
        with Rules():
            call()
    except RuleError:
        return True
    return False


class RuleError(AssertionError):
    """A rule of the device that torch's shapes alone do not check."""


if __name__ == "__main__":
    load_stub()

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


class Rules(TorchDispatchMode):
    """Refuses what a GPU refuses, what makes the host wait, and tensors left on the CPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.attention_calls = 0
        self.types_of_products: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.split("::")[1]
        tensors = [x for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]
        self.operations += 1
        by_truth = name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:])
        if name.startswith(self.WAITING) or by_truth:
            raise RuleError(f"{name}: the host would wait for the device")
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            found = {str(x.dtype) for x in tensors}
            self.types_of_products |= found
            self._demand(len(found) == 1, name, found)
        if "varlen_attn" in name or "_flash_attention" in name:
            self.attention_calls += 1
            heads = [x for x in tensors if x.dim() == 3]
            self._demand({x.dtype for x in heads} <= {torch.bfloat16, torch.float16}, name, heads)
            self._demand(
                all(x.stride(-1) == 1 and x.shape[-1] % 8 == 0 for x in heads), name, heads
            )
            borders = [x for x in tensors if x.dim() == 1 and x.dtype != torch.uint64]
            integers = [x for x in borders if not x.is_floating_point() and x.numel() > 2]
            self._demand(all(x.dtype == torch.int32 for x in integers), name, integers)
        left = [x for x in tensors if x.device.type != "cuda" and x.dim() > 0]
        self._demand(not left, name, left)
        return function(*args, **(kwargs or {}))

    def _demand(self, holds: bool, name: str, what: Any) -> None:
        if not holds:
            raise RuleError(f"{name} with {what}")


if __name__ == "__main__":
    pretend_h100()
    print(json.dumps(rules() if sys.argv[1] == "rules" else kernels()))
