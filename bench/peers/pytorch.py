"""PyTorch with transformers as a peer: answers one JSON line per JSON line on standard input.

usage: pytorch.py FOLDER THREADS
{"pixels": path, "shape": [B, 3, S, S]}            loads float32 values; answers {"ok": true}
{"run": "float32" | "bfloat16", "compiled": bool}  one forward; answers {"seconds": s, "first": [...]}
"""
import json
import sys
import time

import torch
import transformers
from transformers import SiglipVisionModel

folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
models = {}
pixels = None


def model_of(precision, compiled):
    key = (precision, compiled)
    if key not in models:
        model = SiglipVisionModel.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
        if compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True
            model = torch.compile(model)
        models[key] = model
    return models[key]


def answer(request):
    global pixels
    if "pixels" in request:
        with open(request["pixels"], "rb") as file:
            data = bytearray(file.read())
        pixels = torch.frombuffer(data, dtype=torch.float32).reshape(request["shape"])
        return {"ok": True, "torch": torch.__version__, "transformers": transformers.__version__}
    precision = request["run"]
    model = model_of(precision, request["compiled"])
    values = pixels.to(getattr(torch, precision))
    start = time.perf_counter()
    pooled = model(pixel_values=values).pooler_output
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "first": pooled[0].float().tolist()}


with torch.inference_mode():
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # the other side decides what a failure means
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), flush=True)
