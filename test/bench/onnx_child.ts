// Exports a small model in every form, runs it in onnxruntime-node and prints how far its embeddings
// are from ours. A process of its own: onnxruntime does not take typed arrays of another realm.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  candidateForms,
  imageFeeds,
  OrtTower,
  relativeDifference,
  textFeeds,
} from '../../bench/engines';
import { patchRows, pixelValues, textIds } from '../../bench/inputs';
import { resizedPositions } from '../../bench/naflex_positions';
import { writeOnnx } from '../../bench/onnx/model_file';
import type { GraphForm, TowerExport } from '../../bench/onnx/towers';
import { exportNaflex, exportText, exportVision } from '../../bench/onnx/towers';
import { loadOrt } from '../../bench/peers';
import { Siglip2 } from '../../lib/embed';
import { initialize } from '../../lib/model';
import { saveCheckpoint } from '../../lib/weights';
import { smallConfig } from '../weights/small_model';

const ort = loadOrt();
const folder = mkdtempSync(join(tmpdir(), 'siglip2_onnx_'));
const weights = join(folder, 'model.safetensors');
const differences: Record<string, number> = {};

async function open(name: string, exported: TowerExport): Promise<OrtTower> {
  const path = join(folder, `${name}.onnx`);
  await writeOnnx(path, exported.model);
  exported.dispose();
  return OrtTower.open(ort, path, 1);
}

async function compare(
  name: string,
  form: GraphForm,
  model: Siglip2,
  layout: 'fixed' | 'naflex',
): Promise<void> {
  const { config } = model;
  const raw = { normalize: false };
  const record = (what: string, expected: Float32Array[], actual: Float32Array): void => {
    const all = expected.flatMap((vector) => [...vector]);
    differences[`${what} ${name}`] = relativeDifference(actual, all);
  };
  if (layout === 'fixed') {
    const images = pixelValues(2, 14);
    const tower = await open(`vision_${name}`, await exportVision(weights, config, form));
    const expected = await model.embedImages(
      images.map((values) => ({ pixelValues: values })),
      raw,
    );
    record('vision', expected, await tower.run(imageFeeds(ort, images, 14)));
    const ids = textIds(3, config.text.length, config.text.vocabulary);
    const text = await open(`text_${name}`, await exportText(weights, config, form));
    const texts = await model.embedTexts(
      ids.map((inputIds) => ({ inputIds })),
      raw,
    );
    record('text', texts, await text.run(textFeeds(ort, ids)));
    return;
  }
  const grid = [2, 5] as const;
  const values = patchRows(grid, config.vision.patch);
  const [positions] = await resizedPositions(weights, [grid]);
  const expected = await model.embedImages([{ pixelValues: values, spatialShape: grid }], raw);
  const { width, patch } = config.vision;
  for (const padding of [0, 3]) {
    const length = 10 + padding;
    const rows = new Float32Array(length * 3 * patch * patch).fill(0.5);
    rows.set(values);
    const placed = new Float32Array(length * width).fill(0.5);
    placed.set(positions);
    const bias = new Float32Array(length).fill(-1e9).fill(0, 0, 10);
    const masked = padding > 0;
    const exported = await exportNaflex(weights, config, form, masked);
    const tower = await open(`naflex_${name}_${String(padding)}`, exported);
    const feeds = {
      pixel_values: new ort.Tensor('float32', rows, [1, length, 3 * patch * patch]),
      positions: new ort.Tensor('float32', placed, [1, length, width]),
      ...(masked ? { attention_bias: new ort.Tensor('float32', bias, [1, 1, 1, length]) } : {}),
    };
    record(masked ? 'naflex-masked' : 'naflex', expected, await tower.run(feeds));
  }
}

async function main(): Promise<void> {
  for (const layout of ['fixed', 'naflex'] as const) {
    const config = smallConfig(layout);
    await saveCheckpoint(folder, { config, parameters: initialize(config, 3) });
    const model = await Siglip2.load(folder);
    for (const int8 of [false, true]) {
      for (const [name, form] of candidateForms(int8)) {
        await compare(`${int8 ? 'int8' : 'float32'} ${name}`, form, model, layout);
      }
    }
    model.dispose();
  }
  process.stdout.write(JSON.stringify(differences));
}

void main().finally(() => {
  rmSync(folder, { recursive: true, force: true });
});
