"""PyTorch with transformers as a peer on a GPU: answers one JSON line per JSON line on standard input.

{"kind": KIND, "seconds": budget, ...sizes}   see the functions below, one per kind
 -> {"variants": {name: {"seconds": s, "bytes": peak}}, "failed": {name: why}}

Every variant is a way to write the same thing in PyTorch; the other side compares with the best of them.
Times are medians by the device's own clock. What `torch.compile` made is kept between processes in
SIGLIP2_BENCH_TORCH_CACHE where that names a file. SIGLIP2_BENCH_AUTOTUNE=1: matrix products are tuned, too.
"""
import contextlib
import gc
import json
import math
import os
import signal
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
BF16 = torch.bfloat16
CACHE = os.environ.get("SIGLIP2_BENCH_TORCH_CACHE", "")
AUTOTUNE = os.environ.get("SIGLIP2_BENCH_AUTOTUNE", "") == "1"
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]


def compiled(function, **options):
    if AUTOTUNE:
        options.setdefault("mode", "max-autotune-no-cudagraphs")
    return torch.compile(function, dynamic=False, **options)


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def span(run, times):
    """Seconds of one of `times` runs that follow each other on the device."""
    if not CUDA:
        start = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - start) / times
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / times


def timed(run, samples=15, least=0.02):
    """Median seconds; a sample is as many runs as fill `least` seconds. Peak bytes beside them."""
    run()
    run()
    synchronize()
    before = torch.cuda.memory_allocated() if CUDA else 0
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    once = span(run, 1)
    peak = torch.cuda.max_memory_allocated() - before if CUDA else 0
    times = max(1, min(200, math.ceil(least / once)))
    samples = samples if once < 0.1 else max(3, samples // 3)
    seconds = statistics.median(span(run, times) for _ in range(samples))
    return {"seconds": seconds, "bytes": peak}


class Variants:
    """Times what can be timed and keeps the reason of the rest."""

    def __init__(self):
        self.variants, self.failed = {}, {}
        self.late = False

    def add(self, name, make, **options):
        if self.late:
            self.failed[name] = "out of time"
            return
        try:
            self.variants[name] = timed(make(), **options)
        except Exception as error:
            self.late = isinstance(error, TimeoutError)
            self.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()

    def reply(self):
        return {"variants": self.variants, "failed": self.failed}


def random(*shape, dtype=BF16, scale=1.0):
    return (torch.randn(*shape, device=DEVICE) * scale).to(dtype)


# ---- Ceilings ----


def copy(r):
    """`batch` bytes from one place to another."""
    x = torch.randint(0, 255, (r["batch"],), dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    result = Variants()
    result.add("copy_", lambda: lambda: y.copy_(x))
    return result.reply()


def matmul(r):
    """(batch, inner) by (outer, inner) transposed."""
    a, b = random(r["batch"], r["inner"]), random(r["outer"], r["inner"])
    result = Variants()
    result.add("matmul", lambda: lambda: torch.matmul(a, b.t()))
    return result.reply()


# ---- Operations ----


def linear(r):
    """(batch, inner) to outer, with bias, and GELU where asked."""
    x, weight = random(r["batch"], r["inner"]), random(r["outer"], r["inner"], scale=0.02)
    bias = random(r["outer"])
    gelu = r.get("gelu", False)

    def layer(x, weight, bias):
        y = F.linear(x, weight, bias)
        return F.gelu(y, approximate="tanh") if gelu else y

    result = Variants()
    with torch.inference_mode():
        result.add("eager", lambda: lambda: layer(x, weight, bias))
        if gelu:
            fast = compiled(layer)
            result.add("compiled", lambda: lambda: fast(x, weight, bias))
    return result.reply()


def attention(r):
    """Forward or backward over (batch, tokens, heads, headWidth), the layout of a projection's result."""
    B, T, H, hd = r["batch"], r["tokens"], r["heads"], r["headWidth"]
    backward = r["pass"] == "backward"

    def make(backend):
        def build():
            q, k, v = (random(B, T, H, hd).transpose(1, 2).requires_grad_(backward) for _ in range(3))

            def forward():
                with sdpa_kernel([backend]):
                    return F.scaled_dot_product_attention(q, k, v)

            if not backward:
                return forward
            o = forward()
            dout = random(B, T, H, hd).transpose(1, 2)
            return lambda: torch.autograd.grad(o, (q, k, v), dout, retain_graph=True)

        return build

    result = Variants()
    result.add("cuDNN", make(SDPBackend.CUDNN_ATTENTION))
    result.add("flash", make(SDPBackend.FLASH_ATTENTION))
    if not CUDA:
        result.add("math", make(SDPBackend.MATH))
    return result.reply()


def layer_norm(r):
    """Forward or backward over (batch, width)."""
    backward = r["pass"] == "backward"
    x = random(r["batch"], r["width"]).requires_grad_(backward)
    weight, bias = (random(r["width"], dtype=torch.float32).requires_grad_(backward) for _ in range(2))
    dy = random(r["batch"], r["width"])

    def norm(x, weight, bias):
        return F.layer_norm(x.float(), (x.shape[-1],), weight, bias, 1e-6).to(x.dtype)

    def native(x, weight, bias):
        return F.layer_norm(x, (x.shape[-1],), weight, bias, 1e-6)

    def make(function, weight, bias):
        def build():
            if not backward:
                return lambda: function(x, weight, bias)
            y = function(x, weight, bias)
            return lambda: torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)

        return build

    narrow = [p.detach().to(BF16).requires_grad_(backward) for p in (weight, bias)]
    result = Variants()
    result.add("compiled", make(compiled(norm), weight, bias))
    result.add("eager, bfloat16 weights", make(native, *narrow))
    return result.reply()


def adam(r):
    """One update of `batch` float32 parameters in tensors of sizes as in a tower."""
    shapes, left = [], r["batch"]
    while left > 0:
        shapes.append(min(left, 768 * 3072))
        left -= shapes[-1]
    parameters = [random(n, dtype=torch.float32) for n in shapes]
    for p in parameters:
        p.grad = random(*p.shape, dtype=torch.float32)
    result = Variants()

    def make():
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
        return optimizer.step

    result.add("fused AdamW", make)
    return result.reply()


# ---- Losses ----


def siglip_loss(images, texts, scale, bias, first=0):
    """open_clip's SigLipLoss: rows [first, first + len(images)) of the batch against all its texts."""
    logits = scale * images @ texts.T + bias
    labels = -torch.ones(logits.shape, device=logits.device, dtype=logits.dtype)
    labels.diagonal(first).fill_(1)
    return -F.logsigmoid(labels * logits).sum() / texts.shape[0]


def sigmoid_loss(r):
    """Loss and gradients of both embeddings, of scale and of bias, at (batch, width)."""
    B, E = r["batch"], r["width"]
    images, texts = (F.normalize(random(B, E, dtype=torch.float32)).to(BF16).requires_grad_() for _ in range(2))
    t = torch.tensor(math.log(10.0), device=DEVICE, requires_grad=True)
    b = torch.tensor(-10.0, device=DEVICE, requires_grad=True)
    leaves = (images, texts, t, b)

    def plain(loss):
        def run():
            value = loss(images, texts, t.exp().to(BF16), b.to(BF16))
            return torch.autograd.grad(value, leaves)

        return lambda: run

    def chunked(loss, rows):
        def run():
            scale, bias = t.exp().to(BF16), b.to(BF16)
            total = torch.zeros((), device=DEVICE)
            for first in range(0, B, rows):
                part = images[first : first + rows]
                total = total + checkpoint(loss, part, texts, scale, bias, first, use_reentrant=False)
            return torch.autograd.grad(total, leaves)

        return lambda: run

    def row_block(images, texts, scale, bias, first):
        # As siglip_loss, with the diagonal apart so that one compiled function serves all blocks.
        logits = scale * images @ texts.T + bias
        own = texts.narrow(0, first, images.shape[0])
        diagonal = (scale * (images * own).sum(-1) + bias).float()
        return (-F.logsigmoid(-logits).sum().float() - diagonal.sum()) / texts.shape[0]

    result = Variants()
    wanted = r.get("variants", ["plain", "plain compiled", "chunked", "chunked compiled"])
    rows = max(1, B // 16)
    makers = {
        "plain": lambda: plain(siglip_loss),
        "plain compiled": lambda: plain(compiled(siglip_loss)),
        "chunked": lambda: chunked(siglip_loss, rows),
        "chunked compiled": lambda: chunked(torch.compile(row_block, dynamic=None), rows),
    }
    for name in wanted:
        result.add(name, makers[name](), samples=9)
    return result.reply()


def joint_selection(r):
    """`picked` of `batch` pairs in `chunks` steps, learner minus reference, scores made as they are needed."""
    B, E, picked, chunks = r["batch"], r["width"], r["picked"], r["chunks"]
    embed = lambda: F.normalize(random(B, E, dtype=torch.float32)).to(BF16)
    learner, reference = (embed(), embed()), (embed(), embed())
    scale, bias, size = 100.0, -10.0, picked // chunks

    def sums(x, y):
        return F.softplus((x @ y.T) * scale + bias).sum(1, dtype=torch.float32)

    def make(sums):
        def run():
            diagonal = torch.zeros(B, device=DEVICE)
            for sign, (x, y) in ((1, learner), (-1, reference)):
                z = (x * y).sum(-1, dtype=torch.float32) * scale + bias
                diagonal += sign * F.softplus(-z)
            gains, taken = diagonal.clone(), torch.zeros(B, dtype=torch.bool, device=DEVICE)
            for _ in range(chunks):
                noise = -torch.log(-torch.log(torch.rand(B, device=DEVICE)))
                keys = gains.masked_fill(taken, -1e8) + noise
                chosen = keys.topk(size).indices
                taken[chosen] = True
                for sign, (x, y) in ((1, learner), (-1, reference)):
                    gains += sign * (sums(x, y[chosen]) + sums(y, x[chosen]))
            return taken

        return lambda: run

    result = Variants()
    with torch.inference_mode():
        result.add("streaming", make(sums), samples=5)
        result.add("streaming compiled", make(compiled(sums)), samples=5)
    return result.reply()


# ---- Models ----


def siglip_config(r):
    from transformers import SiglipConfig

    tower = {
        "hidden_size": r["width"],
        "intermediate_size": r["mlpWidth"],
        "num_hidden_layers": r["depth"],
        "num_attention_heads": r["heads"],
    }
    return SiglipConfig(
        vision_config={**tower, "image_size": r["imageSize"], "patch_size": r["patch"]},
        text_config={
            **tower,
            "vocab_size": r["vocabulary"],
            "max_position_embeddings": r["length"],
            "projection_size": r["width"],
        },
    )


def towers(r, text):
    """Random towers in bfloat16: made on the device, so that no time goes into drawing on the host."""
    from transformers import SiglipModel, SiglipVisionModel

    config = siglip_config(r)
    with torch.device(DEVICE):
        if text:
            model = SiglipModel._from_config(config, attn_implementation="sdpa")
        else:
            model = SiglipVisionModel._from_config(config.vision_config, attn_implementation="sdpa")
    return model.to(BF16)


def backends():
    return sdpa_kernel(ATTENTION, set_priority=True) if CUDA else contextlib.nullcontext()


def compile_blocks(model):
    """Compiles the transformer blocks, which share one compilation, instead of the whole model."""
    for module in model.modules():
        if type(module).__name__ == "SiglipEncoderLayer":
            module.compile(dynamic=False, **({"mode": "max-autotune-no-cudagraphs"} if AUTOTUNE else {}))


def embed(r):
    """Images (batch, 3, imageSize, imageSize) on the device to embeddings of unit length."""
    model = towers(r, text=False).eval()
    pixels = random(r["batch"], 3, r["imageSize"], r["imageSize"])

    def run(pixels):
        return F.normalize(model(pixel_values=pixels).pooler_output.float(), dim=-1)

    result = Variants()
    with torch.inference_mode(), backends():
        result.add("eager", lambda: lambda: run(pixels), samples=7)
        for form in r.get("compile", []):
            if form == "whole":
                fast = compiled(run)
                result.add("compiled", lambda: lambda: fast(pixels), samples=7)
            if form == "blocks":
                compile_blocks(model)
                result.add("blocks compiled", lambda: lambda: run(pixels), samples=7)
    return result.reply()


def latency(r):
    """One image from host memory to an embedding in host memory, waited for; seconds by the host's clock."""
    model = towers(r, text=False).eval()
    shape = (r["batch"], 3, r["imageSize"], r["imageSize"])
    host = torch.randn(*shape)
    pinned = host.pin_memory() if CUDA else host
    pixels = torch.empty(shape, dtype=torch.float32, device=DEVICE)

    def run(pixels):
        return F.normalize(model(pixel_values=pixels.to(BF16)).pooler_output.float(), dim=-1)

    def sampled(step):
        for _ in range(5):
            step()
        times = []
        for _ in range(100):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return {"seconds": statistics.median(times), "bytes": 0}

    def eager():
        pixels.copy_(pinned, non_blocking=True)
        return run(pixels).cpu()

    result = Variants()

    def add(name, step):
        try:
            result.variants[name] = sampled(step())
        except Exception as error:
            result.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]

    def graphed(function):
        def make():
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    function(pixels)
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = function(pixels)

            def step():
                pixels.copy_(pinned, non_blocking=True)
                graph.replay()
                return y.cpu()

            return step

        return make

    with torch.inference_mode(), backends():
        add("eager", lambda: eager)
        if CUDA:
            add("CUDA graph", graphed(run))
            if r.get("compile"):
                add("compiled, CUDA graph", graphed(compiled(run)))
    return result.reply()


def resize(r):
    """`batch` photos of `height` x `width` in pinned memory to `size` x `size` bytes on the device."""
    shape, size = (r["batch"], 3, r["height"], r["width"]), [r["size"]] * 2
    # Interleaved, as decoders leave them.
    photos = torch.randint(0, 255, (shape[0], *shape[2:], 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    photos = photos.pin_memory() if CUDA else photos
    planes = photos.contiguous().pin_memory() if CUDA else photos.contiguous()

    def torchvision_resize(x):
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        return functional.resize(x, size, InterpolationMode.BICUBIC, antialias=True)

    def interpolate(x):
        y = F.interpolate(x.float(), size, mode="bicubic", antialias=True)
        return y.round_().clamp_(0, 255).to(torch.uint8)

    def one_by_one(x, function):
        return torch.cat([function(x[i : i + 1]) for i in range(len(x))])

    result = Variants()
    with torch.inference_mode():
        for name, x in (("interleaved", photos), ("planes", planes)):
            for function in (torchvision_resize, interpolate):
                label = f"{function.__name__}, {name}"
                result.add(
                    label,
                    lambda x=x, f=function: lambda: f(x.to(DEVICE, non_blocking=True)),
                    samples=5,
                )
                result.add(
                    f"{label}, one by one",
                    lambda x=x, f=function: lambda: one_by_one(x, lambda y: f(y.to(DEVICE, non_blocking=True))),
                    samples=5,
                )
    return result.reply()


def train_step(r):
    """Towers, sigmoid loss, backward, clipping and AdamW with float32 masters, at `batch` pairs."""
    B = r["batch"]
    model = towers(r, text=True).train()
    parameters = [p for p in model.parameters()]
    masters = [p.detach().float() for p in parameters]
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = torch.optim.AdamW(masters, lr=1e-6, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    pixels = random(B, 3, r["imageSize"], r["imageSize"])
    ids = torch.randint(0, r["vocabulary"], (B, r["length"]), device=DEVICE)

    def loss(pixels, ids):
        images = F.normalize(model.vision_model(pixel_values=pixels).pooler_output, dim=-1)
        texts = F.normalize(model.text_model(input_ids=ids).pooler_output, dim=-1)
        return siglip_loss(images, texts, model.logit_scale.exp(), model.logit_bias)

    def make(loss):
        def run():
            gradients = torch.autograd.grad(loss(pixels, ids), parameters)
            torch._foreach_copy_([master.grad for master in masters], list(gradients))
            torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(parameters, masters)

        return lambda: run

    result = Variants()
    with backends():
        forms = r.get("compile", [])
        if not forms or r.get("eager", False):
            result.add("eager", make(loss), samples=5)
        if "whole" in forms:
            result.add("compiled", make(compiled(loss)), samples=5)
        if "blocks" in forms:
            compile_blocks(model)
            result.add("blocks compiled", make(loss), samples=5)
    return result.reply()


def facts(_):
    import transformers

    known = {"torch": torch.__version__, "transformers": transformers.__version__}
    if CUDA:
        known["gpu"] = torch.cuda.get_device_name()
        known["cudnn"] = torch.backends.cudnn.version()
        known["cuda"] = torch.version.cuda
    return known


KINDS = {
    f.__name__: f
    for f in (
        facts,
        copy,
        matmul,
        linear,
        attention,
        layer_norm,
        adam,
        sigmoid_loss,
        joint_selection,
        embed,
        latency,
        resize,
        train_step,
    )
}


def out_of_time(*_):
    raise TimeoutError("out of time")


def answer(request):
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(int(request.get("seconds", 0)))
    try:
        torch.manual_seed(0)
        return KINDS[request["kind"]](request)
    finally:
        signal.alarm(0)
        torch._dynamo.reset()
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def load_cache():
    if CACHE and os.path.exists(CACHE):
        with open(CACHE, "rb") as file:
            torch.compiler.load_cache_artifacts(file.read())


def save_cache():
    artifacts = torch.compiler.save_cache_artifacts() if CACHE else None
    if artifacts is None:
        return
    with open(CACHE + ".new", "wb") as file:
        file.write(artifacts[0])
    os.replace(CACHE + ".new", CACHE)


def main():
    # Only replies may go to standard output.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load_cache()
    for line in sys.stdin:
        if not line.strip():
            continue
        start = time.perf_counter()
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # the other side decides what a failure means
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        reply["wall"] = round(time.perf_counter() - start, 2)
        print(json.dumps(reply), file=replies, flush=True)
        if "compile" in line or reply["wall"] > 3:
            save_cache()
    save_cache()


main()
