"""Embeds one image and one text with transformers: the reference for run.ts.

python reference.py FOLDER [ROWS COLUMNS], where FOLDER holds a checkpoint, pixels.f32 and ids.i32.
"""
import json
import sys

import numpy
import torch
from transformers import AutoModel

folder, *grid = sys.argv[1:]
model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
pixels = torch.from_numpy(numpy.fromfile(f'{folder}/pixels.f32', dtype=numpy.float32))
ids = torch.from_numpy(numpy.fromfile(f'{folder}/ids.i32', dtype=numpy.int32)).long()[None]
if grid:
    rows, columns = map(int, grid)
    images = {
        'pixel_values': pixels.reshape(1, rows * columns, -1),
        'pixel_attention_mask': torch.ones(1, rows * columns, dtype=torch.int32),
        'spatial_shapes': torch.tensor([[rows, columns]]),
    }
else:
    side = round((pixels.numel() / 3) ** 0.5)
    images = {'pixel_values': pixels.reshape(1, 3, side, side)}


def unit(output):
    vector = output.pooler_output[0].double()
    return (vector / vector.norm()).tolist()


with torch.no_grad():
    result = {'image': unit(model.vision_model(**images)), 'text': unit(model.text_model(ids))}
print(json.dumps(result))
