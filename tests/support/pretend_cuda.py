"""A torch that takes this machine for an H100: tensors have device, type and shape, no numbers.

Run as a program, because the stub has to be loaded before torch:

    python pretend_cuda.py rules     a training step of BERT-large under `Rules`
    python pretend_cuda.py kernels   the compiled parts as Triton kernels for sm_90
    python pretend_cuda.py table     launches and bytes of a layer in that code, per micro-batch

The first needs a C++ compiler, the others the package triton, too, and torchao for the layer in
FP8. The last line is JSON, except of the table.
"""

import ctypes
import dataclasses
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


def load_stub() -> ctypes.CDLL:
    """Build the stub, which says yes if torch asks for CUDA, and load it before torch."""
    spec = importlib.util.find_spec("torch")
    torch_folder = Path(str(spec.origin)).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(__file__).with_suffix(".cpp"), f"{folder}/stub.so"
        flags = [
            *("-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder}/include"),
            *(str(source), "-o", library, f"-L{torch_folder}/lib", "-ltorch_cpu", "-lc10"),
        ]
        subprocess.run(["g++", *flags], check=True)
        for name in ("libc10.so", "libtorch_cpu.so"):
            ctypes.CDLL(f"{torch_folder}/lib/{name}", mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)


stub = load_stub()

import torch  # noqa: E402

stub.pretend()
H100 = types.SimpleNamespace(
    name="H100", major=9, minor=0, gcnArchName="", uuid="0", total_memory=80 << 30,
    L2_cache_size=50 << 20, multi_processor_count=132, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
    max_threads_per_block=1024, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
)  # fmt: skip
ANSWERS = {
    "is_available": True, "is_initialized": True, "is_bf16_supported": True, "_lazy_init": None,
    "synchronize": None, "set_rng_state": None, "device_count": 1, "current_device": 0,
    "_exchange_device": 0, "_maybe_exchange_device": 0, "get_device_capability": (9, 0),
    "get_device_properties": H100,
}  # fmt: skip
for name, answer in ANSWERS.items():  # before torch._dynamo is imported, which keeps the functions
    setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
torch.version.cuda = "12.8"

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from data_prep.core.config import compose  # noqa: E402
from data_prep.core.objectives import MaskingUnit, Pairing  # noqa: E402
from data_prep.examples.masking import MaskingRule  # noqa: E402
from pretrain.config.settings import Settings  # noqa: E402
from pretrain.model.attention import Kernel  # noqa: E402
from pretrain.model.bert import BertForPreTraining, Layer, _sums  # noqa: E402
from pretrain.model.fp8 import use_fp8  # noqa: E402
from pretrain.optim.muon import Muon  # noqa: E402
from pretrain.optim.optimizers import build_optimizer, parameter_groups  # noqa: E402
from pretrain.training.memory_probe import fake_batch  # noqa: E402

TOKENS, MASKED, VOCAB_SIZE = 8_192, 1_232, 30_522


class RuleError(AssertionError):
    """A rule of the device that torch's shapes alone do not check."""


class Rules(TorchDispatchMode):
    """Refuses what a GPU would refuse, what would make the host wait, and tensors on the CPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
    attention_calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.types_of_products: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.split("::")[1]
        tensors = [x for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]

        def demand(holds: bool, what: Any) -> None:
            if not holds:
                raise RuleError(f"{name} with {what}")

        by_truth = name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:])
        demand(not name.startswith(self.WAITING) and not by_truth, "a wait for the device")
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            found = {str(x.dtype) for x in tensors}
            self.types_of_products |= found
            demand(len(found) == 1, found)
        if "_flash_attention" in name:
            self.attention_calls += 1
            for x in tensors:
                if x.dim() == 3:
                    demand(x.dtype in (torch.bfloat16, torch.float16), x)
                    demand(x.stride(-1) == 1 and x.shape[-1] % 8 == 0, x)
                elif x.dim() == 1 and x.numel() > 2 and not x.is_floating_point():
                    demand(x.dtype in (torch.int32, torch.uint64), x)  # uint64: generator state
        demand(all(x.is_cuda or x.dim() == 0 for x in tensors), "a tensor on the CPU")
        return function(*args, **(kwargs or {}))


def rules() -> dict[str, Any]:
    """Training steps of BERT-large on a packed row, and each rule broken."""
    rule = MaskingRule(0.15, None, 0.8, 0.1, MaskingUnit.token, 2, 103, 101, 102, VOCAB_SIZE, (0,))
    batch = dataclasses.replace(fake_batch(TOKENS, 512, rule, VOCAB_SIZE), lengths=[])
    with FakeTensorMode(), torch.device("cuda"):
        fields = {n: torch.zeros(x.shape, dtype=x.dtype) for n, x in batch._tensors().items()}
        batch = batch._with(fields)
        steps = [
            training_step(batch, torch.bfloat16, 0.1, "adamw"),
            training_step(batch, torch.float32, 0, "muon"),
        ]
        on_gpu = torch.zeros(16, 3, 2, 8, dtype=torch.bfloat16)
        half, ends = on_gpu[:, 0], torch.zeros(3, dtype=torch.int32)

        def flash(q: torch.Tensor, ends: torch.Tensor) -> Any:
            operator = torch.ops.aten._flash_attention_forward
            return operator(q, q, q, ends, ends, 8, 8, 0.0, False, False)

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
        is_accepted = not is_refused(lambda: flash(half, ends))
        return {"steps": steps, "refused": refused, "accepted": is_accepted}


def is_refused(call: Callable[[], Any]) -> bool:
    try:
        with Rules():
            call()
    except RuleError:
        return True
    return False


def large_settings(attention_dropout: float, optimizer: str = "adamw") -> Settings:
    settings, _ = compose("config", Settings, ["+model=large", f"optim={optimizer}"])
    settings.model.attention_probs_dropout_prob = attention_dropout
    return settings


def training_step(
    batch: Any, dtype: torch.dtype, attention_dropout: float, optimizer_name: str
) -> dict[str, Any]:
    """Forward, backward and update with the losses of engine.py: in bf16, or fp32 with autocast."""
    settings = large_settings(attention_dropout, optimizer_name)
    torch.set_default_dtype(dtype)
    model = BertForPreTraining(settings.model, VOCAB_SIZE, Pairing.nsp).train()
    torch.set_default_dtype(torch.float32)
    groups = parameter_groups(model, 0.01, settings.optim.name)
    optimizer = build_optimizer(groups, settings.optim)
    if isinstance(optimizer, Muon):
        optimizer._dtype = torch.bfloat16  # as the engine's `attach`
    with Rules() as seen:
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.float32):
            mlm_loss, pair_loss, *_ = model(batch)
        (mlm_loss / batch.num_masked + pair_loss / batch.num_sequences).backward()
        optimizer.step()
    gradients = [parameter.grad for parameter in model.parameters()]
    return {
        "attention_calls": seen.attention_calls,
        "types_of_products": sorted(seen.types_of_products),
        "gradients_on_cuda": all(g is not None and g.is_cuda for g in gradients),
    }


class CodeIsKept(Exception):
    """Code for a GPU was made, and is not to be loaded."""


def kernels() -> dict[str, Any]:
    """The compiled parts at BERT-large's size, forward and backward, as inductor makes them.

    Its code for sm_90 is kept and not loaded; triton builds each kernel with its own ptxas.
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
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        utils = None
        get_current_device = get_current_stream = staticmethod(lambda *_: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_active_torch_device = staticmethod(lambda: torch.device("cuda", 0))

    driver.set_active(Driver())
    # these would try their patterns on the device
    fuse_attention._sfdp_init = pad_mm._pad_mm_init = lambda *_, **__: None
    misc_patterns._misc_patterns_init = lambda *_, **__: None
    torch._inductor.runtime.triton_helpers.set_driver_to_gpu = lambda: None
    torch._inductor.config.compile_threads = 1
    torch._inductor.config.fx_graph_cache = False
    torch._inductor.config.joint_graph_constant_folding = False  # on the device
    codes: list[tuple[str, int]] = []  # of each graph, with the bytes it moves

    def keep_code(lowering: Any) -> Any:
        code = lowering.codegen()[0]
        codes.append((getattr(code, "value", code), bytes_outside_products(lowering)))
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

    settings = large_settings(attention_dropout=0.0)
    with mode, torch.device("cuda"):
        ends = torch.zeros(49, dtype=torch.int32)
        logits = torch.zeros(MASKED, 30_528, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(MASKED, dtype=torch.int64)

    def built_layer(
        dtype: torch.dtype, has_copies: bool = False, fp8: bool = False, tokens: int = TOKENS
    ) -> dict[str, Any]:
        torch.set_default_dtype(dtype)
        with mode, torch.device("cuda"):
            layer = Layer(settings.model).train()
            if has_copies:  # as in engine/zero1.py
                for linear in (m for m in layer.modules() if isinstance(m, torch.nn.Linear)):
                    linear.weight.data = linear.weight.data.bfloat16()
            if fp8:
                of_one = types.SimpleNamespace(settings=settings.model, layers=[layer])
                use_fp8(of_one, torch.device("cuda"))
            x = torch.zeros(tokens, settings.model.hidden_size, requires_grad=True)
        names, weights = zip(*layer.named_parameters(), strict=True)

        def run_layer(x: torch.Tensor, ends: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
            batch = types.SimpleNamespace(cu_seqlens=ends, max_seqlen=512)
            with torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.float32):
                return torch.func.functional_call(
                    layer, dict(zip(names, weights, strict=True)), (x, batch, Kernel.flash)
                )

        with mode:
            found = built(run_layer, x, ends, *weights)
        return {**found, "parameters": sum(weight.numel() for weight in weights)}

    with mode:
        loss = built(lambda logits, labels: _sums(logits, labels)[0], logits, labels)
    found = {
        "layer": built_layer(torch.bfloat16), "autocast": built_layer(torch.float32), "loss": loss,
        "copies": built_layer(torch.float32, has_copies=True),
    }  # fmt: skip
    if importlib.util.find_spec("torchao") is not None:
        found["fp8"] = built_layer(torch.bfloat16, fp8=True)
        found["fp8, twice the tokens"] = built_layer(torch.bfloat16, fp8=True, tokens=2 * TOKENS)
    return found


def table() -> str:
    """A line per kind of layer: what it launches and moves, forward and backward."""
    lines = [f"BERT-large, {TOKENS:,} tokens; MB are of the kernels and of attention"]
    lines.append(f"{'':<24}{'kernels':>9}{'products':>10}{'MB forward':>12}{'MB backward':>13}")
    for kind, part in kernels().items():
        passes = [part["forward"], part["backward"]]
        kernels_, products = (sum(p[of] for p in passes) for of in ("launches", "products"))
        moved = [p["bytes"] / 1e6 for p in passes]
        lines.append(f"{kind:<24}{kernels_:>9}{products:>10}{moved[0]:>12,.0f}{moved[1]:>13,.0f}")
    return "\n".join(lines)


def bytes_outside_products(lowering: Any) -> int:
    """Bytes that the kernels and attention of a graph read and write, each buffer once a kernel."""
    nodes = [
        node
        for node in lowering.scheduler.nodes
        if not str(getattr(node.node, "python_kernel_name", "")).startswith("extern_kernels.")
    ]
    return sum(node.get_read_write_buffers_sizes() for node in nodes)


def built_pass(graph: Any, name: str, mode: Any, codes: list[tuple[str, int]]) -> dict[str, Any]:
    """Kernels launched, products, attention calls and bytes moved in a graph, and the sizes of its
    kernels in bytes."""
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
    code, moved = codes[-1]
    quotes = "'" * 3
    pattern = rf"async_compile\.triton\('(\w+)', {quotes}(.*?){quotes}, device_str='cuda'\)"
    sizes = []
    for kernel, source in re.findall(pattern, code, re.DOTALL):
        path = Path(tempfile.mkdtemp()) / "kernel.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(kernel, path)
        module = sys.modules[kernel] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        autotuner = getattr(module, kernel)
        autotuner.precompile(warm_cache_only=True)
        sizes.append(Path(autotuner.compile_results[0].kernel.cubin_path).stat().st_size)
    launches = len(re.findall(r"^\s+triton_\w+\.run\(", code, re.MULTILINE))
    products = len(re.findall(r"extern_kernels\.(?:(?:add)?mm|_scaled_mm)\(", code))
    attention = code.count("aten._flash_attention")
    return {
        "launches": launches, "products": products, "cubins": sizes, "attention": attention,
        "bytes": moved,
    }  # fmt: skip


if __name__ == "__main__":
    what = {"rules": rules, "kernels": kernels, "table": table}[sys.argv[1]]()
    print(what if isinstance(what, str) else json.dumps(what))
