"""PyTorch as a peer of a training step on the CPU: the same model and losses, written as one would there.

usage: pytorch_training.py THREADS
{"sizes": {...}}                         builds model, optimizer and a random batch; answers {"ok": true}
{"run": LOSSES, "compiled": bool}        one step; answers {"seconds": s, "loss": x}

LOSSES: "sigmoid"; "decoder" adds the captioning decoder's three targets; "all" adds self-distillation and
masked prediction with their teacher. Sizes are those of the training configuration on the other side.
"""
import copy
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self, width, heads, memory=None, bias=True):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(memory or width, width, bias=bias)
        self.value = nn.Linear(memory or width, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, memory=None, mask=None, repeat=1):
        memory = x if memory is None else memory
        q, k, v = self.split(self.query(x)), self.split(self.key(memory)), self.split(self.value(memory))
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden, bias=True):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention, self.mlp = Attention(width, heads), Mlp(width, hidden)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MapHead(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention, self.norm = Attention(width, heads), nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, tokens):
        pooled = self.attention(self.probe.expand(len(tokens), -1, -1), tokens)[:, 0]
        return pooled + self.mlp(self.norm(pooled))


class Vision(nn.Module):
    def __init__(self, s):
        super().__init__()
        width, self.patch, self.grid = s["width"], s["patch"], s["imageSize"] // s["patch"]
        self.embed = nn.Linear(3 * self.patch**2, width)
        self.positions = nn.Parameter(torch.randn(self.grid**2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, s["heads"], s["mlpWidth"]) for _ in range(s["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = MapHead(width, s["heads"], s["mlpWidth"])

    def forward(self, images, mask=None, token=None):
        x = self.embed(F.unfold(images, self.patch, stride=self.patch).transpose(1, 2))
        if mask is not None:
            x = torch.where(mask[..., None], token, x)
        positions = self.positions
        if x.shape[1] != len(positions):
            side = math.isqrt(x.shape[1])
            grid = positions.T.reshape(1, -1, self.grid, self.grid)
            grid = F.interpolate(grid, (side, side), mode="bilinear", antialias=True, align_corners=False)
            positions = grid.flatten(2)[0].T
        x = x + positions
        for block in self.blocks:
            x = block(x)
        tokens = self.norm(x)
        return tokens, self.head(tokens)


class Text(nn.Module):
    def __init__(self, s, embedding):
        super().__init__()
        width = s["width"]
        self.tokens = nn.Embedding(s["vocabulary"], width)
        self.positions = nn.Parameter(torch.randn(s["length"], width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, s["heads"], s["mlpWidth"]) for _ in range(s["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, embedding)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -1]))


class DecoderBlock(nn.Module):
    def __init__(self, s):
        super().__init__()
        width, heads = s["width"], s["heads"]
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=1e-6, bias=False) for _ in range(3))
        self.attention = Attention(width, heads, bias=False)
        self.cross = Attention(width, heads, s["memoryWidth"], bias=False)
        self.mlp = Mlp(width, s["mlpWidth"], bias=False)

    def forward(self, x, memory, mask, repeat):
        x = x + self.attention(self.norm1(x), mask=mask)
        x = x + self.cross(self.norm2(x), memory, repeat=repeat)
        return x + self.mlp(self.norm3(x))


class Decoder(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.tokens = nn.Embedding(s["vocabulary"] + 1, s["width"])
        self.positions = nn.Parameter(torch.randn(s["length"], s["width"]) * 0.02)
        self.blocks = nn.ModuleList(DecoderBlock(s) for _ in range(s["depth"]))
        self.norm = nn.LayerNorm(s["width"], eps=1e-6)
        self.head = nn.Linear(s["width"], s["vocabulary"])

    def forward(self, ids, mask, memory):
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = block(x, memory, mask, len(ids) // len(memory))
        return self.norm(x)


class Head(nn.Module):
    def __init__(self, width, s, prototypes):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, s["hidden"]),
            nn.GELU(),
            nn.Linear(s["hidden"], s["hidden"]),
            nn.GELU(),
            nn.Linear(s["hidden"], s["bottleneck"]),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, s["bottleneck"]) * 0.02)

    def forward(self, x):
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Model(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.vision, self.text = Vision(s["vision"]), Text(s["text"], s["vision"]["width"])
        self.decoder = Decoder(s["decoder"])
        width, d = s["vision"]["width"], s["selfDistillation"]
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.pooled_head = Head(width, d, d["prototypes"])
        self.patch_head = Head(width, d, d["patchPrototypes"])
        self.scale, self.bias = nn.Parameter(torch.tensor(math.log(10))), nn.Parameter(torch.tensor(-10.0))


def sigmoid_loss(images, texts, scale, bias):
    logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * scale.exp() + bias
    signs = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def cross_entropy(student, teacher, centre):
    q = F.softmax((teacher - centre) / 0.04, dim=-1)
    return -(q * F.log_softmax(student / 0.1, dim=-1)).sum(-1).mean()


class Training:
    def __init__(self, s):
        self.sizes, B = s, s["batch"]
        self.model = Model(s)
        self.teacher = copy.deepcopy(nn.ModuleList([self.model.vision, self.model.pooled_head, self.model.patch_head]))
        self.teacher.requires_grad_(False)
        self.steps = {}
        v, t, d = s["vision"], s["text"], s["selfDistillation"]
        side, local, count = v["imageSize"], s["localSize"], s["localViews"]
        self.images, self.globals = torch.randn(2, B, 3, side, side).clamp(-1, 1)
        self.locals = torch.randn(B * count, 3, local, local).clamp(-1, 1)
        self.ids = torch.randint(0, t["vocabulary"], (B, t["length"]))
        tokens = (side // v["patch"]) ** 2
        order = torch.rand(B, tokens).argsort(1)
        self.mask = order < tokens // 2
        length = s["decoder"]["length"]
        self.targets = torch.randint(0, t["vocabulary"], (3 * B, length))
        self.used = torch.arange(length).expand(3 * B, -1) < s["targetLength"]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        whole = torch.ones_like(causal)
        self.causal = torch.stack([whole if i % 6 == 0 else causal for i in range(3 * B)])[:, None]
        self.centres = [torch.zeros(d["prototypes"]), torch.zeros(d["patchPrototypes"])]

    def loss(self, losses):
        m = self.model
        tokens, pooled = m.vision(self.images)
        loss = sigmoid_loss(pooled, m.text(self.ids), m.scale, m.bias)
        means = []
        if losses != "sigmoid":
            hidden = m.decoder(self.targets, self.causal, tokens)
            logits = m.decoder.head(hidden[self.used])
            loss = loss + 3 * F.cross_entropy(logits, self.targets[self.used])
        if losses == "all":
            vision, pooled_head, patch_head = self.teacher
            with torch.no_grad():
                patches, whole = vision(self.globals)
                targets = pooled_head(whole)
                patch_targets = patch_head(patches)
            _, views = m.vision(self.locals)
            count = self.sizes["localViews"]
            local = cross_entropy(m.pooled_head(views), targets.repeat_interleave(count, 0), self.centres[0])
            masked, _ = m.vision(self.globals, self.mask, m.mask_token)
            masked = cross_entropy(m.patch_head(masked[self.mask]), patch_targets[self.mask], self.centres[1])
            loss = loss + 0.25 * (local + 0.25 * masked)
            means = [targets.mean(0), patch_targets.flatten(0, 1).mean(0)]
        return loss, means

    def step_of(self, losses, compiled):
        key = (losses, compiled)
        if key not in self.steps:
            unused = {
                "sigmoid": ("decoder", "pooled_head", "patch_head", "mask_token"),
                "decoder": ("pooled_head", "patch_head", "mask_token"),
                "all": (),
            }[losses]
            parameters = [p for name, p in self.model.named_parameters() if not name.startswith(unused)]
            optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
            function = torch.compile(self.loss, dynamic=False) if compiled else self.loss
            self.steps[key] = (parameters, optimizer, function)
        return self.steps[key]

    def run(self, losses, compiled):
        parameters, optimizer, function = self.step_of(losses, compiled)
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss, means = function(losses)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        if means:
            with torch.no_grad():
                student = [self.model.vision, self.model.pooled_head, self.model.patch_head]
                averages = [p for p in self.teacher.parameters()]
                torch._foreach_lerp_(averages, [p for part in student for p in part.parameters()], 1 - 0.966)
                for centre, mean in zip(self.centres, means):
                    centre.lerp_(mean, 0.1)
        return {"seconds": time.perf_counter() - start, "loss": loss.item()}


training = None
for line in sys.stdin:
    try:
        request = json.loads(line)
        if "sizes" in request:
            training = Training(request["sizes"])
            reply = {"ok": True, "torch": torch.__version__}
        else:
            reply = training.run(request["run"], request["compiled"])
    except Exception as error:  # the other side decides what a failure means
        reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(json.dumps(reply), flush=True)
